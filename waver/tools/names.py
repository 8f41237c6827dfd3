"""Lists of names in messages."""

from collections.abc import Iterable

_MAX_NAMES = 3


def abbreviate(names: Iterable[str]) -> str:
    """Joins names with commas; of more than three, the first three and the number of the others."""
    names = list(names)
    return ", ".join(names[:_MAX_NAMES]) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
