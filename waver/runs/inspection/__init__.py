"""Visualises a model on a small, fixed subset of a split: images, distributions and a projection."""

from waver.runs.inspection.inspect import Inspection, inspect_run
from waver.runs.inspection.pictures import to_png
from waver.runs.inspection.projection import write_projection
from waver.runs.inspection.settings import InspectionSettings

__all__ = ["Inspection", "InspectionSettings", "inspect_run", "to_png", "write_projection"]
