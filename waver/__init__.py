"""Writing-style agnostic text-video retrieval, distributed with Ray."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from waver.search import load, open_index

__version__ = "0.1.0"
__all__ = ["load", "open_index"]


def __getattr__(name: str) -> Any:
    """Imports the functions of the Python interface when they are first used: they need torch, which takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'waver' has no attribute {name!r}")
    from waver import search

    return getattr(search, name)
