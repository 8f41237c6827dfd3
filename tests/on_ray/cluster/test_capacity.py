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


def test_what_idle_nodes_have_room_for():
    with connect() as where:
        assert "using the Ray of this process (1 node, 6 CPUs, 0 GPUs)" in where
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


def test_nodes_without_their_label_do_not_count():
    train = {"waver.role": "train"}
    with pytest.raises(ClusterTooSmallError, match=r"of 1 node, 0 have waver\.role=train"):
        wait_for_capacity(1, 2, WorkerResources(1.0, labels=train))
    with pytest.raises(ClusterTooSmallError, match=r"after 0\.1 s .*correct ingest\.node_labels"):
        count_cpus(train, wait_s=0.1)
    assert count_cpus({}) == 6


def test_as_many_begin_as_fit_and_never_fewer_than_the_least():
    assert wait_for_capacity(1, 4, WorkerResources(2.0)) == 3
    assert wait_for_capacity(1, 2, WorkerResources(2.0)) == 2
    with pytest.raises(
        ClusterTooSmallError, match="4 workers with 2 CPU each are requested, and the cluster has capacity for 3"
    ):
        wait_for_capacity(4, 8, WorkerResources(2.0))


def test_what_others_use_is_waited_for_until_they_leave(holding, monkeypatch, said):
    monkeypatch.setattr("waver.on_ray.cluster.capacity._NOTICE_AFTER_S", 1.0)
    start = time.monotonic()
    with holding(5) as let_go:
        threading.Timer(2.5, let_go).start()
        assert wait_for_capacity(3, 3, WorkerResources(2.0)) == 3
    assert 2.5 <= time.monotonic() - start < 20
    assert said == ["others use the cluster: 0 of 3 workers with 2 CPU each fit now: waiting for free capacity"]


def test_nodes_that_are_lost_while_it_waits_are_waited_for_from_then(holding, monkeypatch):
    """However long others were waited for before."""
    with holding(6):
        start = time.monotonic()
        monkeypatch.setattr(WorkerResources, "max_workers", lambda self: 6 if time.monotonic() - start < 1.5 else 0)
        with pytest.raises(ClusterTooSmallError, match=r"has capacity for 0 after 1\.5 s"):
            wait_for_capacity(1, 1, WorkerResources(1.0), wait_s=1.5)
        assert time.monotonic() - start > 2.5, "1.5 s from the start would be a little more than 1.5"


def test_who_does_not_queue_is_told_of_others(holding, monkeypatch):
    monkeypatch.setattr("waver.on_ray.cluster.capacity._PATIENCE_S", 1.0)
    with holding(5):
        with pytest.raises(ClusterTooSmallError, match="others use the cluster: 1 of 2 workers with 1 CPU each fit"):
            wait_for_capacity(2, 2, WorkerResources(1.0), queues=False)
        assert wait_for_capacity(1, 2, WorkerResources(1.0)) == 1, "fewer begin when more would take too long"


def test_room_for_one_more_is_told_when_it_comes(holding):
    told = threading.Event()
    with holding(6) as let_go, watch_free_capacity(told.set, 2, WorkerResources(1.0), every_s=0.2):
        assert not told.wait(1)
        let_go()
        assert told.wait(20)
