"""Searches the videos of a user: model of a run, windows of films, index of their embeddings. Imports no Ray."""

from waver.search.answers import Answer
from waver.search.index import SearchError
from waver.search.model import Model, load
from waver.search.search import Index, Match, open_index

__all__ = ["Answer", "Index", "Match", "Model", "SearchError", "load", "open_index"]
