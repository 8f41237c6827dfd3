"""Two runs side by side: in what they differ, and what came of it."""

from waver.runs.comparison.compare import Comparison, ComparisonRow, MetricComparison, compare_runs
from waver.runs.comparison.reading import ComparisonError

__all__ = ["Comparison", "ComparisonError", "ComparisonRow", "MetricComparison", "compare_runs"]
