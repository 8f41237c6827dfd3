"""Run folders: what a run reads, writes and shows."""
