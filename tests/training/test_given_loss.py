"""A user's own loss in the trainer: what it is given, and that nothing is learnt from one that isn't a loss."""

# ruff: noqa: E501
# The table holds whole sentences.

import math

import pytest
import torch
from made_groups import sampled_groups

from negaware.objectives import OBJECTIVES, Terms, WholeGroups, of_groups
from negaware.objectives.user_loss import UserLossError, user_objective
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, NonFiniteLossError, Trainer
from tiny_models import llama, network


def trainer_of(function, **options):
    settings = {"compute_dtype": "float32", "learning_rate": 1e-3, "optimizer_steps": 1, "micro_batch_tokens": 60}
    loss = LossSettings(user_objective("my_losses:mine", function), {}, 1.0, 14)
    return Trainer(network(llama(0)), loss, TrainingOptions(**settings | options), num_steps=10)


def kept(answers, value):
    return torch.where(answers.mask, value, 0.0)


def at_padding(answers):
    return torch.where(answers.mask, answers.logprobs, 0.25) if not answers.mask.all() else answers.logprobs


def nan_at_padding(answers):
    return torch.where(answers.mask, answers.logprobs, math.nan) if not answers.mask.all() else answers.logprobs


FAULTS = {
    "raises": (lambda answers: answers.logits, "raised AttributeError: 'Answers' object has no attribute 'logits' (test_given_loss.py, line "),
    "raises in torch": (lambda answers: answers.logprobs @ torch.ones(3, 3, 3, 3), "raised RuntimeError: "),
    "no tensor": (lambda answers: 0.5, "gives float; it should give the loss of each token, a tensor of the shape of answers.logprobs, or Terms of it"),
    "nothing": (lambda answers: None, "gives NoneType; it should give the loss of each token"),
    "a mean": (lambda answers: answers.logprobs.mean(), "gives a tensor of shape []; it should be ["),
    "one an answer": (lambda answers: answers.logprobs.sum(1), "(reduction takes the mean)"),
    "float64": (lambda answers: kept(answers, answers.logprobs.double()).double(), "gives float64; it should give float32, as answers.logprobs has it"),
    "whole numbers": (lambda answers: answers.mask.int(), "gives int32; it should give float32"),
    "detached": (lambda answers: kept(answers, answers.logprobs.detach()), "has no gradient; it should be computed from answers.logprobs, not detached"),
    "not a number": (lambda answers: kept(answers, answers.logprobs.exp().log1p() - math.nan), "is nan at a token; it should be finite (look for log or a root of 0, and for division)"),
    "infinite": (lambda answers: kept(answers, answers.logprobs / 0), "is -inf at a token; it should be finite"),
    "where the mask is 0": (at_padding, "isn't 0 where the mask is 0; it should end with torch.where(answers.mask, loss, 0.0)"),
    "no number where the mask is 0": (nan_at_padding, "isn't 0 where the mask is 0"),
    "odd counts": (lambda answers: Terms(kept(answers, answers.logprobs), {"many": answers.mask}), "has counts that are none; they should be a dictionary from names to numbers of tokens, such as mask.sum()"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_loss_that_is_none_is_told_before_the_weights_change(fault):
    function, sentence = FAULTS[fault]
    trainer = trainer_of(function)
    before = {name: weight.clone() for name, weight in trainer.network.model.named_parameters()}
    with pytest.raises(UserLossError) as caught:
        trainer.step(sampled_groups(llama(0)), 0)
    assert str(caught.value).startswith("the loss my_losses:mine ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[name], weight) for name, weight in trainer.network.model.named_parameters())
    assert all(master.grad is None for master in trainer.optimizer.masters.values())
    assert trainer.optimizer.num_steps_done == 0


def test_a_gradient_that_is_not_finite_is_laid_to_the_loss():
    def rooted(answers):
        return kept(answers, (answers.logprobs - answers.logprobs.detach()).abs().sqrt())

    with pytest.raises(NonFiniteLossError, match=r"Mend the loss my_losses:mine if it can have such a gradient\. In a"):
        trainer_of(rooted).step(sampled_groups(llama(0)), 0)


def test_lack_of_memory_is_no_fault_of_the_loss():
    def hungry(answers):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        trainer_of(hungry).step(sampled_groups(llama(0)), 0)


def test_a_tensor_or_terms_and_every_metric_is_that_of_the_built_in_loss():
    groups = sampled_groups(llama(0))

    def metrics(function):
        return trainer_of(function, optimizer_steps=2).step(groups, 0)

    terms = metrics(lambda answers: OBJECTIVES["nft"].terms(answers))
    tensor = metrics(lambda answers: OBJECTIVES["nft"].terms(answers).per_token)
    settings = {"compute_dtype": "float32", "learning_rate": 1e-3, "optimizer_steps": 2, "micro_batch_tokens": 60}
    built_in = Trainer(network(llama(0)), LossSettings(OBJECTIVES["nft"], {}, 1.0, 14), TrainingOptions(**settings), 10)
    assert terms == built_in.step(groups, 0)
    assert tensor == {name: value for name, value in terms.items() if "/share_" not in name}
    mine = metrics(lambda answers: Terms(-kept(answers, answers.logprobs), {"right": answers.correct.sum()}))
    assert 0 < mine["train/share_right"] < 1


@pytest.mark.parametrize("micro_batch_tokens", [1, 60, 10_000])
def test_it_is_told_which_group_of_the_mini_batch_an_answer_is_of(micro_batch_tokens):
    groups, seen = sampled_groups(llama(0), num_groups=5), []

    def watching(answers):
        seen.append((answers.group.tolist(), answers.correct.tolist(), answers.pass_rate.tolist()))
        return kept(answers, -answers.logprobs)

    trainer = trainer_of(watching, micro_batch_tokens=micro_batch_tokens, optimizer_steps=2)
    ends, ended = [], trainer.optimizer.step
    trainer.optimizer.step = lambda norm: ends.append(len(seen)) or ended(norm)
    trainer.step(groups, 0)
    found = []
    for first, last in ((0, ends[0]), (ends[0], ends[1])):
        verdicts: dict[int, list[bool]] = {}
        rates: dict[int, set[float]] = {}
        for numbers, correct, pass_rates in seen[first:last]:  # one call a micro-batch
            for number, right, rate in zip(numbers, correct, pass_rates, strict=True):
                verdicts.setdefault(number, []).append(right)
                rates.setdefault(number, set()).add(rate)
        assert sorted(verdicts) == list(range(len(verdicts)))
        for number, of_group in verdicts.items():
            (rate,) = rates[number]
            assert sum(of_group) / len(of_group) == pytest.approx(rate)
        found += [(len(of_group), sum(of_group)) for of_group in verdicts.values()]
    assert sorted(found) == sorted((len(group.verdicts), sum(v.correct for v in group.verdicts)) for group in groups)


@of_groups
def hardest(groups: WholeGroups, *, temperature: float = 0.5) -> torch.Tensor:
    """The built-in `real`, but for its name."""
    return OBJECTIVES["real"].function.__wrapped__(groups, temperature=temperature)


def test_a_loss_of_whole_groups_is_the_built_in_one():
    """With the same pass before each step, and the same mean over groups; small micro-batches split the groups."""
    settings = {"compute_dtype": "float32", "learning_rate": 1e-3, "optimizer_steps": 2, "micro_batch_tokens": 40}
    found = []
    for objective in (user_objective("my_losses:hardest", hardest), OBJECTIVES["real"]):
        trainer = Trainer(network(llama(0)), LossSettings(objective, {}, 1.0, 14), TrainingOptions(**settings), 10)
        found.append(trainer.step(sampled_groups(llama(0)), 0))
        assert objective.keywords["temperature"].default == 0.5
        with pytest.raises(ValueError, match=r"reduction is token_mean, but .* has one term a group, whose reduction"):
            objective.reduction_under({}, "token_mean")
    assert found[0] == found[1]


def test_what_is_no_loss_of_groups_is_told_by_its_name():
    @of_groups
    def an_answer_each(groups):
        return groups.log_ratio

    with pytest.raises(
        UserLossError, match=r"^the loss my_losses:mine raised ValueError: a loss of groups gave a tensor"
    ):
        trainer_of(an_answer_each).step(sampled_groups(llama(0)), 0)
