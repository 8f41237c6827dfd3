"""Training without Ray Train, for tests whose subject is not Ray."""

import torch

from waver.on_ray.stages.train_worker import TrainingJob, train_job


def train_in_process(job: TrainingJob) -> dict:
    """Trains in this process; the `local_worker` of `waver.on_ray.stages.train.train`."""
    return train_job(job, device=torch.device("cpu"), report=lambda metrics: None)
