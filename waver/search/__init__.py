"""Searches the videos of a user: the model of a run, an index of windows of videos, exact and approximate search.

Nothing here imports Ray: `waver.on_ray.stages.index` builds an index, and this package reads it.
"""

from waver.search.answers import Answer
from waver.search.index import SearchError
from waver.search.model import Model, load
from waver.search.search import Index, Match, open_index

__all__ = ["Answer", "Index", "Match", "Model", "SearchError", "load", "open_index"]
