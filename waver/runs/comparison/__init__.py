"""Compares two runs: settings, data, environment and metrics."""

from waver.runs.comparison.compare import Comparison, ComparisonRow, MetricComparison, compare_runs
from waver.runs.comparison.reading import ComparisonError

__all__ = ["Comparison", "ComparisonError", "ComparisonRow", "MetricComparison", "compare_runs"]
