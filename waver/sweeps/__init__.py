"""Hyper-parameter sweeps without Ray: the search space, the folder of a sweep, its results, report page and progress."""
