"""What can go wrong with an experiment, looked for before anything runs.

`findings` is what a check says and how it is shown, `data` looks at annotations and videos, `machine` at weights, disk and
memory. What needs the stages of an experiment, or a cluster, is in `waver.on_ray.doctor.examine`, which asks all of them.
"""
