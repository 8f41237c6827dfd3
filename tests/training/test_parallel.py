"""What one process can tell; tests/distributed has several."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from waver.training import parallel


@given(num_rows=st.integers(0, 50), world_size=st.integers(1, 9))
def test_shards_cover_all_rows_once_and_differ_by_one(num_rows, world_size):
    shards = [parallel.shard(num_rows, rank, world_size) for rank in range(world_size)]
    assert [row for shard in shards for row in range(num_rows)[shard]] == list(range(num_rows))
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_single_worker_needs_no_process_group():
    rows = torch.rand(3, 2, requires_grad=True)
    assert parallel.all_gather(rows, 3) is rows
    assert torch.equal(parallel.all_reduce(rows, "sum"), rows)
    assert parallel.gather_objects("x") == ["x"]
    assert (parallel.rank(), parallel.world_size()) == (0, 1)


def test_a_group_that_ends_leaves_no_worker_alone():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with parallel.require_process_group():
        assert (parallel.rank(), parallel.world_size()) == (0, 1)
        dist.destroy_process_group()
        for exchange in (parallel.rank, parallel.world_size, lambda: parallel.all_reduce(torch.ones(1), "sum")):
            with pytest.raises(parallel.ProcessGroupEndedError, match="ended while its workers computed"):
                exchange()
    assert parallel.world_size() == 1
    with parallel.require_process_group():
        assert parallel.world_size() == 1
