"""Sweeps without Ray: the points of a search space, the folder of a sweep, and what is made of its results."""
