"""Statement 5: micro-batches, order, padding and ranks leave the gradient alone. And what a reduction divides by."""

import pytest
import torch

from negaware.objectives import Answers, WholeGroups
from negaware.objectives.ops import denominator, reduce_loss
from negaware.objectives.whole_groups import Whole


class Mini:
    """A mini-batch with one parameter vector behind its log-probabilities, so that every token meets every other."""

    def __init__(self, form, batch):
        self.objective, self.options = form
        self.tensors = batch
        self.features = torch.randn(*batch[0].shape, 3, dtype=torch.float64)
        self.reduction = self.objective.reduction_under(self.options)
        mask = batch[2]
        self.denominator = denominator(self.reduction, int(mask.sum()), len(mask), 4, 2)
        self.group = torch.arange(2).repeat_interleave(4)
        sums = torch.where(mask, batch[0] - batch[1], 0.0).sum(1)
        self.groups = WholeGroups(sums, mask.sum(1), batch[3], self.group)

    def answers(self, rows, tensors, extra_rows):
        """What the loss is given of these rows, and after them of rows that are no answers."""
        if not self.objective.sees_groups:
            return Answers(*tensors)
        group = torch.cat([self.group[rows], torch.full((extra_rows,), 2)])
        places = torch.cat([torch.as_tensor(rows), torch.zeros(extra_rows, dtype=torch.long)])
        return Answers(*tensors, group, whole=Whole(self.groups, places))

    def gradient_and_loss(self, parts, padding=0, extra_rows=0):
        """The parameter's gradient and the loss, added up over `parts` (row indices), each padded with garbage."""
        parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        total = torch.zeros(1, dtype=torch.float64)
        for rows in parts:
            base, old, mask, correct, rate = (tensor[rows] for tensor in self.tensors)
            logprobs = base + self.features[rows] @ parameter
            bottom, right = (extra_rows, base.shape[1]), (len(rows) + extra_rows, padding)
            logprobs = torch.cat([logprobs, torch.full(bottom, float("nan"), dtype=torch.float64)])
            logprobs = torch.cat([logprobs, torch.full(right, -float("inf"), dtype=torch.float64)], 1)
            old = torch.cat([torch.cat([old, torch.zeros(bottom)]), torch.full(right, float("nan"))], 1)
            mask = torch.cat([torch.cat([mask, torch.zeros(bottom)]), torch.zeros(right)], 1)
            correct = torch.cat([correct, torch.zeros(extra_rows, dtype=torch.bool)])
            rate = torch.cat([rate, torch.full((extra_rows,), 0.5)])
            answers = self.answers(rows, (logprobs, old, mask, correct, rate), extra_rows)
            loss = self.objective.terms(answers, **self.options).per_token
            value = reduce_loss(loss, mask, self.reduction, self.denominator)
            value.backward()
            total += value.detach()
        return torch.cat([parameter.grad, total])


@pytest.fixture
def mini(form, batch):
    return Mini(form, batch)


@pytest.fixture
def whole(mini):
    result = mini.gradient_and_loss([torch.arange(8)])
    assert result.abs().min() > 1e-4
    return result


@pytest.mark.parametrize("sizes", [(4, 4), (1, 5, 2), (1,) * 8])
def test_micro_batches(sizes, mini, whole):
    parts = torch.arange(8).split(list(sizes))
    torch.testing.assert_close(mini.gradient_and_loss(parts), whole, rtol=0, atol=1e-12)


def test_order(mini, whole):
    torch.testing.assert_close(mini.gradient_and_loss([torch.randperm(8)]), whole, rtol=0, atol=1e-12)


def test_padding(mini, whole):
    padded = mini.gradient_and_loss([torch.arange(8)], padding=5, extra_rows=3)
    torch.testing.assert_close(padded, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks(num_ranks, mini, whole):
    """Each rank takes its share of the rows, in micro-batches of its own; gradients are summed over ranks."""
    ranks = [torch.arange(8)[rank::num_ranks].split(2) for rank in range(num_ranks)]
    total = sum(mini.gradient_and_loss(parts, padding=rank) for rank, parts in enumerate(ranks))
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-12)


def test_a_mean_taken_per_micro_batch_would_differ(mini, whole):
    """The trap: uneven micro-batches with a denominator of their own."""
    parts = torch.arange(8).split([1, 5, 2])
    total = torch.zeros_like(whole)
    for rows in parts:
        mask = mini.tensors[2][rows]
        local = denominator(mini.reduction, int(mask.sum()), len(mask), 4, len(mini.group[rows].unique()))
        total += mini.gradient_and_loss([rows]) * mini.denominator / local / len(parts)
    assert (total - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("reduction", "divisor", "expected"),
    [
        ("token_mean", 4, (1 + 2 + 4 + 10) / 4),
        ("sequence_mean", 2, ((1 + 2 + 4) / 3 + 10) / 2),
        ("sequence_sum", 2, (1 + 2 + 4 + 10) / 2),
        ("constant", 10, (1 + 2 + 4 + 10) / 10),
        ("group_mean", 3, (1 + 2 + 4 + 10) / 3),
    ],
)
def test_reductions(reduction, divisor, expected):
    loss = torch.tensor([[1.0, 2.0, 4.0], [10.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert denominator(reduction, num_tokens=4, num_answers=2, max_answer_tokens=5, num_groups=3) == divisor
    assert reduce_loss(loss, mask, reduction, divisor).item() == pytest.approx(expected)


def test_a_batch_repeated_has_the_same_loss(mini):
    """Twice the answers under the global count of twice the answers: a loss does not grow with the batch."""
    objective, options, tensors = mini.objective, mini.options, mini.tensors
    twice = tuple(torch.cat([tensor, tensor]) for tensor in tensors)
    double = denominator(mini.reduction, 2 * int(tensors[2].sum()), 16, 4, 4)
    once = reduce_loss(objective(*tensors, **options), tensors[2], mini.reduction, mini.denominator)
    again = reduce_loss(objective(*twice, **options), twice[2], mini.reduction, double)
    torch.testing.assert_close(once, again, rtol=0, atol=1e-12)
