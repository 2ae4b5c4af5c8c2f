"""A user's own loss as an objective: which answers of it are taken, and what is said of the others."""

import numpy as np
import pytest
import torch

from negaware.objectives import Answers, Terms
from negaware.objectives.user_loss import UserLossError, user_objective

# ruff: noqa: E501
# The tables hold whole sentences.

MASK = torch.tensor([[True, True], [True, False]])


def answers(logprobs=((-1.0, -2.0), (-0.5, 0.0)), old=((-1.0, -1.0), (-1.0, 0.0)), mask=MASK, grad=True):
    given = torch.tensor(logprobs, requires_grad=grad)
    return Answers(given, torch.tensor(old), mask, torch.tensor([True, False]), torch.full((2,), 0.5))


def told(function, of=None):
    with pytest.raises(UserLossError) as caught:
        user_objective("my_losses:mine", function).terms(of or answers())
    return str(caught.value)


def test_it_needs_no_group_and_is_the_users():
    def mine(answers, *, scale: float = 2.0):
        return scale * answers.logprobs

    own = user_objective("my_losses:mine", mine)
    assert (own.name, own.reduction, own.needs_group, own.is_user_loss) == ("my_losses:mine", "token_mean", False, True)
    assert own.keywords["scale"].default == 2.0
    terms = own.terms(answers(), scale=3.0)
    assert (terms.per_token.tolist(), terms.counts) == ([[-3.0, -6.0], [-1.5, 0.0]], {})


def deep(answers):
    return answers and deeper()


def deeper():
    raise RuntimeError("  a\n   b" + 400 * "c")


def test_what_it_raises_is_said_with_the_line_that_raised():
    line = deeper.__code__.co_firstlineno + 1
    said = "a b" + 297 * "c"
    assert (
        told(deep)
        == f"the loss my_losses:mine raised RuntimeError: {said} (test_user_loss_checks.py, line {line}); correct it"
    )


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda answers: 0.5, "gives float; it should give the loss of each token, a tensor of the shape of answers.logprobs, or Terms of it"),
        (lambda answers: answers.logprobs.sum(1), "gives a tensor of shape [2]; it should be [2, 2], that of answers.logprobs: a loss for each token (reduction takes the mean)"),
        (lambda answers: answers.logprobs.double(), "gives float64; it should give float32, as answers.logprobs has it"),
        (lambda answers: answers.logprobs.detach(), "has no gradient; it should be computed from answers.logprobs, not detached"),
        (lambda answers: answers.logprobs - 1, "isn't 0 where the mask is 0; it should end with torch.where(answers.mask, loss, 0.0)"),
        (lambda answers: answers.logprobs / torch.tensor([[0.0, -0.0], [0.0, 1.0]]), "is -inf at a token; it should be finite (look for log or a root of 0, and for division)"),
    ],
)  # fmt: skip
def test_a_loss_that_is_none(function, sentence):
    assert told(function) == f"the loss my_losses:mine {sentence}"


def test_without_a_gradient_asked_for_none_is_missed():
    """As where a loss is only measured."""
    without = answers(grad=False)
    assert user_objective("mine", lambda answers: 2 * answers.logprobs).terms(without).per_token[0, 1] == -4


def test_a_mask_of_numbers_will_do():
    for dtype in (torch.int64, torch.float32):
        of = answers(mask=MASK.to(dtype))
        assert user_objective("mine", lambda answers: answers.logprobs).terms(of).per_token[1, 0] == -0.5
        assert "isn't 0 where the mask is 0" in told(lambda answers: answers.logprobs - 1, of)


@pytest.mark.parametrize("side", ["logprobs", "old"])
def test_what_the_model_gives_no_number_for_is_not_the_losss_fault(side):
    of = answers(**{side: ((float("nan"), -2.0), (-0.5, 0.0))})
    own = user_objective("mine", lambda answers: answers.logprobs - answers.old_logprobs)
    assert own.terms(of).per_token[0].isnan().tolist() == [True, False]
    assert "is nan at a token" in told(
        lambda answers: answers.logprobs - answers.old_logprobs + torch.where(MASK, torch.nan, 0.0), of
    )


def with_counts(counts):
    """Terms as a user makes them, where nobody checks types."""

    def loss(answers):
        terms = Terms(answers.logprobs)
        object.__setattr__(terms, "counts", counts)
        return terms

    return loss


@pytest.mark.parametrize("counts", [{}, {"a": 3}, {"a": torch.tensor(3)}, {"a": torch.tensor(3), "b": 4}])
def test_counts_are_numbers_of_tokens(counts):
    own = user_objective("mine", with_counts(counts))
    assert own.terms(answers()).counts == counts


@pytest.mark.parametrize(
    "counts",
    [None, [], ["a"], {1: 3}, {"a": 3, 1: 4}, {"a": 0.5}, {"a": "3"}, {"a": np.array(3)}, {"a": MASK}, {"a": 3, "b": MASK}],
    ids=str,
)  # fmt: skip
def test_counts_that_are_none(counts):
    assert told(with_counts(counts)) == (
        "the loss my_losses:mine has counts that are none; they should be a dictionary from names to numbers of "
        "tokens, such as mask.sum()"
    )
