"""Compares the names of missing videos with the files that are there: if all differ in one way, that is one mistake."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from waver.data.annotations.suffixes import split_video_suffix

_MAX_CANDIDATES = 20
"""Files of the same essence; among more of them the folder has to decide."""
_ZEROS = re.compile(r"(?<![0-9])0+(?=[0-9])")
_AROUND = " \t\r\n'\"`\u201c\u201d"
_CAPTION_NUMBER = re.compile(r"#[0-9]+$")  # Flickr8k's way to number the captions of a file
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/")  # of two slashes, a path keeps one


class Similar(NamedTuple):
    """A file that is there, and how its name differs from the name in the table."""

    file: str
    difference: str
    """Such as "with .mp4 added"; it fits into "10 of 10 are there ..."."""


def find_similar(names: Iterable[str], files: Iterable[str]) -> dict[str, Similar]:
    """Finds a file for each name that differs from it only by folder, ending, case, accents, blanks or leading zeros.

    Args:
        names: of missing videos, as in the table.
        files: paths of all files that are there, relative to the folder of videos, with slashes.

    Returns:
        Name -> file, for those names that have one, or several in one folder.
    """
    files_of: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        for key in _essences(file):
            files_of[key].append(file)
    found = {}
    for name in names:
        in_folder, anywhere = (files_of.get(key, []) for key in _essences(name))
        candidates = (in_folder or anywhere)[: _MAX_CANDIDATES + 1]
        scores = [_num_equal_parts(name, file) for file in candidates]
        best = [file for file, score in zip(candidates, scores, strict=True) if score == max(scores)]
        folders = {file.rpartition("/")[0] for file in best}
        if len(folders) == 1 and len(candidates) <= _MAX_CANDIDATES:  # else any of them may be meant
            found[name] = Similar(best[0], _describe_difference(name, best[0]))
    return found


def is_url(name: str) -> bool:
    """Returns whether a name in a table is an address rather than a path."""
    return _URL.match(name) is not None


def _essences(name: str) -> tuple[str, str]:
    """Returns what stays of a path without everything in which names differ by mistake, with and without its folder."""
    folder, _, stem = _clean(name).rpartition("/")
    while (shorter := split_video_suffix(stem)[0]) != stem:
        stem = shorter
    stem = _ZEROS.sub("", _plain(stem))
    return f"{_plain(folder.rpartition('/')[2])}/{stem}", stem


def _clean(name: str) -> str:
    """Returns a path with slashes, without what may stand around it: quotes, invisible characters, caption's number."""
    if is_url(name):
        name = unquote(re.split("[?#]", name)[0])
    name = "".join(char for char in name if unicodedata.category(char) not in ("Cf", "Cc")).strip(_AROUND)
    return _CAPTION_NUMBER.sub("", name).replace("\\", "/")


def _num_equal_parts(name: str, file: str) -> int:
    parts = zip(reversed(_clean(name).casefold().split("/")), reversed(file.casefold().split("/")), strict=False)
    return sum(a == b for a, b in parts)


def _describe_difference(name: str, file: str) -> str:
    """Returns the steps that make the path of the file from the name."""
    clean, steps = _clean(name), []
    folder, _, base = clean.rpartition("/")
    file_folder, _, file_base = file.rpartition("/")
    if "\\" in name:
        steps.append("with / in place of \\")
    elif clean != name and not is_url(name):
        has_number = _CAPTION_NUMBER.search(name)
        steps.append("without #0 ..." if has_number else "without blanks, quotes or invisible characters")
    if _plain(folder) != _plain(file_folder):
        steps.append(_describe_folders(folder, file_folder))
        folder = file_folder
    (stem, suffix), (file_stem, file_suffix) = split_video_suffix(base), split_video_suffix(file_base)
    if suffix != file_suffix:
        steps.append(_describe_suffixes(suffix, file_suffix))
    one, other = f"{folder}/{stem}", f"{file_folder}/{file_stem}"
    if one != other:
        if _nfc(one) != one or _nfc(other) != other:
            steps.append("with accents in another Unicode form (NFC, NFD)")
        one, other = _nfc(one), _nfc(other)
        if one != other and _ZEROS.sub("", one) == _ZEROS.sub("", other):
            steps.append("with another number of leading zeros")
        elif one != other:
            steps.append("in other case (capital and small letters)")
    return " and ".join(steps)


def _describe_suffixes(suffix: str, file_suffix: str) -> str:
    if suffix and file_suffix:
        return f"with {file_suffix} in place of {suffix}"
    return f"with {file_suffix} added" if file_suffix else f"without {suffix}"


def _describe_folders(folder: str, file_folder: str) -> str:
    if not file_folder or folder.endswith(f"/{file_folder}"):
        return f"without {folder.removesuffix(file_folder).rstrip('/') + '/'!r} in front"
    if not folder or file_folder.endswith(f"/{folder}"):
        return "in a subfolder"
    return "in another folder"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _plain(text: str) -> str:
    return _nfc(text).casefold()
