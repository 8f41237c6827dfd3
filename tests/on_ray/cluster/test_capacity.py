import threading
import time

import pytest

from waver.on_ray.cluster.capacity import (
    ClusterTooSmallError,
    WorkerResources,
    count_cpus,
    require_capacity,
    wait_for_capacity,
    watch_free_capacity,
)
from waver.on_ray.cluster.connection import connect


def test_require_capacity_counts_the_workers_that_fit_on_idle_nodes():
    with connect() as description:
        assert "using the Ray of this process (1 node, 6 CPUs, 0 GPUs)" in description
        require_capacity(6, WorkerResources(1.0))
        require_capacity(3, WorkerResources(2.0))
        with pytest.raises(ClusterTooSmallError, match="has capacity for 2 "):
            require_capacity(3, WorkerResources(2.5))
        with pytest.raises(
            ClusterTooSmallError, match="1 CPU and 1 GPU each are requested, and the cluster has capacity for 0"
        ):
            require_capacity(1, WorkerResources(1.0, 1.0))
        with pytest.raises(ClusterTooSmallError, match=r"after 0\.1 s"):
            require_capacity(7, WorkerResources(1.0), wait_s=0.1)


def test_nodes_without_the_required_labels_do_not_count():
    train = {"waver.role": "train"}
    with pytest.raises(ClusterTooSmallError, match=r"of 1 node, 0 have waver\.role=train"):
        wait_for_capacity(1, 2, WorkerResources(1.0, labels=train))
    with pytest.raises(ClusterTooSmallError, match=r"after 0\.1 s .*correct ingest\.node_labels"):
        count_cpus(train, wait_s=0.1)
    assert count_cpus({}) == 6


def test_wait_for_capacity_returns_the_workers_that_fit_but_not_fewer_than_the_minimum():
    assert wait_for_capacity(1, 4, WorkerResources(2.0)) == 3
    assert wait_for_capacity(1, 2, WorkerResources(2.0)) == 2
    with pytest.raises(
        ClusterTooSmallError, match="4 workers with 2 CPU each are requested, and the cluster has capacity for 3"
    ):
        wait_for_capacity(4, 8, WorkerResources(2.0))


def test_wait_for_capacity_waits_until_others_free_theirs(holding, monkeypatch, said):
    monkeypatch.setattr("waver.on_ray.cluster.capacity._NOTICE_AFTER_S", 1.0)
    start = time.monotonic()
    with holding(5) as release:
        threading.Timer(2.5, release).start()
        assert wait_for_capacity(3, 3, WorkerResources(2.0)) == 3
    assert 2.5 <= time.monotonic() - start < 20
    assert said == ["others use the cluster: 0 of 3 workers with 2 CPU each fit now: waiting for free capacity"]


def test_wait_s_starts_when_nodes_are_lost(holding, monkeypatch):
    """Time spent waiting for others does not count."""
    with holding(6):
        start = time.monotonic()
        monkeypatch.setattr(WorkerResources, "max_workers", lambda self: 6 if time.monotonic() - start < 1.5 else 0)
        with pytest.raises(ClusterTooSmallError, match=r"has capacity for 0 after 1\.5 s"):
            wait_for_capacity(1, 1, WorkerResources(1.0), wait_s=1.5)
        assert time.monotonic() - start > 2.5, "1.5 s from the start would be a little more than 1.5"


def test_without_queueing_capacity_that_others_use_is_an_error(holding, monkeypatch):
    monkeypatch.setattr("waver.on_ray.cluster.capacity._PATIENCE_S", 1.0)
    with holding(5):
        with pytest.raises(ClusterTooSmallError, match="others use the cluster: 1 of 2 workers with 1 CPU each fit"):
            wait_for_capacity(2, 2, WorkerResources(1.0), queues=False)
        assert wait_for_capacity(1, 2, WorkerResources(1.0)) == 1, "fewer start if waiting for more takes too long"


def test_watch_free_capacity_notifies_when_capacity_becomes_free(holding):
    notified = threading.Event()
    with holding(6) as release, watch_free_capacity(notified.set, 2, WorkerResources(1.0), every_s=0.2):
        assert not notified.wait(1)
        release()
        assert notified.wait(20)
