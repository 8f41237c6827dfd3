"""Checks of the nodes of a cluster."""
