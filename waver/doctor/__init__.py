"""Checks of an experiment before a stage starts, without Ray.

`findings` defines and prints the results of checks. `data` checks annotations and videos; `machine` checks the model, its
weights, disk and memory; `stages` checks the results of earlier stages. `waver.on_ray.doctor` runs all checks, and adds
those of a cluster.
"""
