"""Records metrics of a run: metrics.jsonl, and events for TensorBoard."""

from waver.runs.tracking.tracker import Tracker, read_metrics

__all__ = ["Tracker", "read_metrics"]
