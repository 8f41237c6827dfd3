import pytest
import torch

from waver.model.dropout import dropout_of_pairs, keep_all

VALUES = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(2)) + 5


def test_each_row_depends_on_its_own_seed_alone():
    whole = dropout_of_pairs(0.4, [1, 2, 3, 4])(VALUES)
    for rows in (slice(0, 1), slice(1, 4), slice(3, 4)):
        assert torch.equal(dropout_of_pairs(0.4, [1, 2, 3, 4][rows])(VALUES[rows]), whole[rows])
    assert torch.equal(
        dropout_of_pairs(0.4, [1, 2, 3, 4])(VALUES.double()), whole.double().where(whole == 0, VALUES.double() / 0.6)
    )
    assert not torch.equal(whole[0] == 0, whole[1] == 0)
    assert not torch.equal(dropout_of_pairs(0.4, [5, 2, 3, 4])(VALUES)[0], whole[0])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_values_are_dropped_at_the_rate_and_kept_in_the_mean(rate):
    values = torch.ones(10, 100, 100)
    dropped = dropout_of_pairs(rate, range(10))(values)
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / (1 - rate)])
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


def test_calls_draw_one_after_the_other():
    drop = dropout_of_pairs(0.5, [1, 2, 3, 4])
    assert not torch.equal(drop(VALUES), drop(VALUES))


def test_keeping_all_changes_nothing():
    assert keep_all(VALUES) is VALUES
