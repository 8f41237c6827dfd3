"""`waver doctor`: all checks of an experiment, and those of the nodes of a cluster."""
