"""Connection to a Ray cluster, its capacity, and groups of workers on it."""
