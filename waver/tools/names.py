"""Lists of names, and numbers with their nouns, in messages."""

from collections.abc import Iterable

_MAX_NAMES = 3


def abbreviate(names: Iterable[str]) -> str:
    """Joins names with commas; of more than three, the first three and the number of the others."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, which gets an s unless there is one: `1 worker`, `2 workers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
