"""Errors of dictionaries and knowledge."""

from waver.tools.errors import WaverError


class KnowledgeError(WaverError):
    """A dictionary or knowledge is missing, damaged, or belongs to other data or settings."""


class TooFewPhrasesError(KnowledgeError):
    """Each clip has fewer phrases than `knowledge.top_k`; matching again would not change that."""
