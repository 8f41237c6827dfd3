"""What a run leaves behind for people to look at: metrics.jsonl, and events for TensorBoard."""

from waver.runs.tracking.tracker import Tracker, read_metrics

__all__ = ["Tracker", "read_metrics"]
