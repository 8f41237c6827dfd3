"""Writes the embeddings of a run or of an index into files for other programs: `waver export`."""

from waver.search.export.folder import ExportError
from waver.search.export.formats import FORMATS, Format
from waver.search.export.index import export_index
from waver.search.export.run import EvaluatedRun, write_run

__all__ = ["FORMATS", "EvaluatedRun", "ExportError", "Format", "export_index", "write_run"]
