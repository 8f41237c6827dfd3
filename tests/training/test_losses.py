import math

import pytest
import torch

from waver.training.losses import contrastive, distillation, shared_phrases, sigmoid

SHARES = (slice(0, 3), slice(3, 5), slice(5, 7))


def naive_contrastive(t2v: torch.Tensor, v2t: torch.Tensor, scale: float, excluded: torch.Tensor) -> float:
    """Each row's own column against the columns that are not excluded."""
    total, num = 0.0, len(t2v)
    for rows in (t2v, v2t):
        for i in range(num):
            logits = {j: scale * float(rows[i, j]) for j in range(num) if j == i or not excluded[i, j]}
            total -= (logits[i] - math.log(sum(math.exp(x) for x in logits.values()))) / (2 * num)
    return total


def matrix(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric_mask(num: int) -> torch.Tensor:
    """Some pairs, and all own pairs."""
    mask = matrix(num, num, seed=9) > 0.4
    return mask | mask.T | torch.eye(num, dtype=torch.bool)


def number(value: float, **options) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64, **options)


def test_contrastive_equals_its_formula():
    similarity = matrix(5, 5)
    expected = naive_contrastive(similarity, similarity.T, 7.0, torch.zeros(5, 5))
    torch.testing.assert_close(contrastive(similarity, similarity.T, number(7.0), offset=0), number(expected))


def test_excluded_pairs_are_left_out_of_both_softmaxes():
    similarity, excluded = matrix(6, 6), symmetric_mask(6)
    assert 0 < excluded.sum() - 6 < 30
    loss = contrastive(similarity, similarity.T, number(5.0), offset=0, not_negative=excluded)
    torch.testing.assert_close(loss, number(naive_contrastive(similarity, similarity.T, 5.0, excluded)))
    everywhere = contrastive(similarity, similarity.T, number(5.0), offset=0)
    assert loss < everywhere


def test_positive_pair_counts_even_if_excluded():
    similarity, excluded = matrix(6, 6), symmetric_mask(6)
    unmarked = excluded & ~torch.eye(6, dtype=torch.bool)
    losses = [
        contrastive(similarity, similarity.T, number(5.0), offset=0, not_negative=mask) for mask in (excluded, unmarked)
    ]
    assert losses[0] == losses[1]


def test_loss_is_zero_without_negatives():
    similarity = matrix(4, 4).requires_grad_()
    scale = number(3.0, requires_grad=True)
    loss = contrastive(similarity, similarity.T, scale, offset=0, not_negative=torch.ones(4, 4, dtype=torch.bool))
    loss.backward()
    assert loss == 0
    assert scale.grad == 0
    assert torch.equal(similarity.grad, torch.zeros(4, 4, dtype=torch.float64))


@pytest.mark.parametrize("excludes", [False, True])
def test_shares_of_workers_add_up_to_the_whole(excludes):
    similarity, scale = matrix(7, 7), number(3.0)
    mask = symmetric_mask(7) if excludes else None
    whole = contrastive(similarity, similarity.T, scale, offset=0, not_negative=mask)
    shares = [
        contrastive(
            similarity[rows],
            similarity.T[rows],
            scale,
            offset=rows.start,
            not_negative=None if mask is None else mask[rows],
        )
        for rows in SHARES
    ]
    torch.testing.assert_close(sum(shares), whole)


@pytest.mark.parametrize("excludes", [False, True])
def test_gradient(excludes):
    similarity = matrix(4, 4).requires_grad_()
    scale = number(2.0, requires_grad=True)
    mask = symmetric_mask(4) if excludes else None
    assert torch.autograd.gradcheck(
        lambda s, x: contrastive(s, s.T, x, offset=0, not_negative=mask), (similarity, scale)
    )


def naive_sigmoid(t2v: torch.Tensor, scale: float, bias: float, excluded: torch.Tensor) -> float:
    total, num = 0.0, len(t2v)
    for i in range(num):
        for j in range(num):
            if i == j or not excluded[i, j]:
                sign = 1 if i == j else -1
                total -= math.log(1 / (1 + math.exp(-sign * (scale * float(t2v[i, j]) + bias))))
    return total / num


@pytest.mark.parametrize("excludes", [False, True])
def test_sigmoid_equals_its_formula_and_is_the_sum_of_shares(excludes):
    similarity, mask = matrix(7, 7), symmetric_mask(7)
    expected = naive_sigmoid(similarity, 3.0, -2.0, mask if excludes else torch.zeros(7, 7))
    assert expected != pytest.approx(naive_sigmoid(similarity, 3.0, -2.0, torch.zeros(7, 7) if excludes else mask))
    for shares in ((slice(0, 7),), SHARES):
        losses = [
            sigmoid(
                similarity[rows],
                number(3.0),
                number(-2.0),
                offset=rows.start,
                not_negative=mask[rows] if excludes else None,
            )
            for rows in shares
        ]
        torch.testing.assert_close(sum(losses), number(expected))


def test_sigmoid_is_the_same_in_both_directions():
    similarity = matrix(5, 5)
    losses = [sigmoid(rows, number(3.0), number(-2.0), offset=0) for rows in (similarity, similarity.T)]
    torch.testing.assert_close(losses[0], losses[1])


def test_sigmoid_of_large_logits_is_finite():
    similarity = (1000 * (1 - 2 * torch.eye(3, dtype=torch.float64))).requires_grad_()
    loss = sigmoid(similarity, number(100.0), number(-10.0), offset=0)
    loss.backward()
    assert loss.item() == pytest.approx((3 * (1e5 + 10) + 6 * (1e5 - 10)) / 3)
    assert similarity.grad.isfinite().all()


@pytest.mark.parametrize("excludes", [False, True])
def test_gradient_of_sigmoid(excludes):
    similarity, mask = matrix(4, 4).requires_grad_(), symmetric_mask(4) if excludes else None
    scale, bias = number(2.0, requires_grad=True), number(-1.0, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda s, x, b: sigmoid(s, x, b, offset=0, not_negative=mask), (similarity, scale, bias)
    )


def test_clips_that_share_a_phrase():
    rows = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 1]])
    columns = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 1], [6, 9, 2], [10, 11, 12]])
    expected = [[bool(set(a) & set(b)) for b in columns.tolist()] for a in rows.tolist()]
    assert shared_phrases(rows, columns).tolist() == expected
    assert expected[0] == [True, False, True, True, False]


def test_shared_phrases_of_many_clips_are_intersections_of_sets():
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(60, generator=generator)[:5] for _ in range(30)])
    sets = [set(row) for row in ids.tolist()]
    shared = shared_phrases(ids[10:14], ids)
    assert shared.tolist() == [[bool(sets[i] & sets[j]) for j in range(30)] for i in range(10, 14)]
    assert 4 < shared.sum() < 4 * 30


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_equals_its_formula(temperature):
    """Rows and columns of both, softened: sum of p (log p - log q), p the teacher's, q the student's."""
    student, teacher, scale = matrix(5, 5), matrix(5, 5, seed=1), 3.0

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(scale * value / temperature) for value in values]
        return [power / sum(powers) for power in powers]

    expected = 0.0
    for ours, theirs in ((student, teacher), (student.T, teacher.T)):
        for i in range(5):
            for q, p in zip(softmax(ours[i].tolist()), softmax(theirs[i].tolist()), strict=True):
                expected += p * (math.log(p) - math.log(q)) / 10
    loss = distillation((student, student.T), (teacher, teacher.T), number(scale), temperature=temperature)
    torch.testing.assert_close(loss, number(temperature**2 * expected))


def test_distillation_is_zero_only_if_both_agree():
    student = matrix(5, 5)
    both = (student, student.T)
    shifted = (student + matrix(5, 1), student.T + matrix(5, 1, seed=2))  # a softmax does not see it
    for teacher in (both, shifted):
        assert distillation(both, teacher, number(9.0), temperature=2.0).abs() < 1e-12
    teacher = matrix(5, 5, seed=1)
    assert distillation(both, (teacher, teacher.T), number(9.0), temperature=2.0) > 0.1


def test_distillation_has_gradient_for_the_student_only():
    student, teacher = matrix(5, 5).requires_grad_(), matrix(5, 5, seed=1).requires_grad_()
    scale = number(3.0, requires_grad=True)
    distillation((student, student.T), (teacher, teacher.T), scale, temperature=2.0).backward()
    assert teacher.grad is None
    assert scale.grad is None
    assert student.grad.abs().max() > 0


def test_gradient_of_distillation():
    student, teacher = matrix(4, 4).requires_grad_(), matrix(4, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: distillation((s, s.T), (teacher, teacher.T), number(2.0), temperature=1.5), (student,)
    )


def test_shares_of_distillation_add_up_to_the_whole():
    student, teacher, scale = matrix(7, 7), matrix(7, 7, seed=1), number(3.0)
    whole = distillation((student, student.T), (teacher, teacher.T), scale, temperature=2.0)
    shares = [
        distillation((student[rows], student.T[rows]), (teacher[rows], teacher.T[rows]), scale, temperature=2.0)
        for rows in SHARES
    ]
    torch.testing.assert_close(sum(shares), whole)
