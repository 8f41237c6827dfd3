import pytest
import torch

from waver.model.random_streams import derive_seed, random_stream


def test_a_stream_draws_what_its_seed_determines_and_leaves_the_generator_of_torch():
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    with random_stream(7):
        first = torch.rand(5)
    with random_stream(7):
        again = torch.rand(5)
    with pytest.raises(RuntimeError), random_stream(7):
        torch.rand(-1)
    assert torch.equal(first, again)
    assert torch.equal(torch.rand(3), expected)
    with random_stream(8):
        assert not torch.equal(torch.rand(5), first)


def test_seeds_are_fixed_and_differ_by_each_part_of_their_name():
    assert derive_seed(0, "fusion") == 7414432268317459382
    keys = [(seed, *rest) for seed in (-1, 0, 1) for rest in (("fusion",), ("temporal",), (0, 1), (1, 0), (10,))]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


def test_streams_work_on_the_meta_device():
    with torch.device("meta"), random_stream(1):
        assert torch.nn.Linear(2, 2).weight.is_meta
