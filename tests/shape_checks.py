"""Checks the shapes in signatures at every call while tests run; otherwise they are only documentation."""

import functools
from importlib.machinery import SourceFileLoader
from unittest import mock

import jaxtyping
from jaxtyping import _import_hook


def install_shape_checks(package: str) -> None:
    """Makes beartype check the annotations of jaxtyping in all modules of a package that are imported from now on.

    jaxtyping's loader caches the bytecode of these modules under another name. It sets that name while a module runs, so
    everything that the module imports, such as Ray and torchvision, would be compiled again, for 10 s in each process. Here
    the name is set only while the code of the module is read.
    """
    _import_hook._JaxtypingLoader.get_code = _read_code
    _import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module
    jaxtyping.install_import_hook(package, "beartype.beartype")


def _read_code(loader: _import_hook._JaxtypingLoader, module: str) -> object:
    cache_name = functools.partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with mock.patch("importlib._bootstrap_external.cache_from_source", cache_name):
        return SourceFileLoader.get_code(loader, module)
