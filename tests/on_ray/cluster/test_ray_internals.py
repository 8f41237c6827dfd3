"""Only one module uses Ray's private API. import-linter cannot check this: of external packages it sees only the root."""

import ast
import re
from pathlib import Path

import pytest

import waver

PACKAGE = Path(waver.__file__).parent
PRIVATE = ("ray.train.v2", "ray.dashboard", "ray.core", "ray.cluster_utils")
INTERNALS = PACKAGE / "on_ray/cluster/ray_internals.py"


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: these tests read source text."""


def is_private(name: str) -> bool:
    """Returns whether a dotted name of Ray is private: it has an underscore, or is in `PRIVATE`."""
    parts = name.split(".")
    return parts[0] == "ray" and (name.startswith(PRIVATE) or any(part.startswith("_") for part in parts[1:]))


def private_uses(source: str) -> set[str]:
    """Returns the private names of Ray in a module: imports, attributes, and names of modules in strings."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names.add(node.value)
    return {name for name in names if is_private(name)}


def test_no_other_module_uses_the_private_api_of_ray():
    found = {
        str(path.relative_to(PACKAGE)): uses
        for path in PACKAGE.rglob("*.py")
        if path != INTERNALS and (uses := private_uses(path.read_text()))
    }
    assert found == {}


def test_each_use_says_why_the_public_api_does_not_suffice():
    tree = ast.parse(INTERNALS.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions
    for function in functions:
        # A private attribute of an object of Ray counts as well.
        source = ast.unparse(function)
        assert private_uses(source) or re.search(r"\w\._\w", source), f"{function.name} needs no private name"
        assert len(ast.get_docstring(function).split("\n\n")) > 1, f"{function.name} does not say why"


@pytest.mark.parametrize(
    "source",
    [
        "from ray._private import ray_constants",
        "from ray import _raylet",
        "import ray.train.v2._internal.exceptions",
        "def f():\n    import ray.dashboard.modules.job.sdk",
        "ray._private.state.state",
        "importlib.import_module('ray._private.state')",
    ],
)
def test_private_uses_are_found(source):
    assert private_uses(source)


def test_public_names_are_no_private_uses():
    assert not private_uses(
        "import ray.train\nfrom ray.train.torch import TorchTrainer\nray.util.get_node_ip_address()"
    )
