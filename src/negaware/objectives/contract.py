"""The contract of an objective: what it is given (`Answers`), what it returns (`Terms`), how its options are declared.

An objective is one function of the answers, with its options by keyword. Their type, default, bound and meaning are
declared there and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args, get_origin

import torch
from torch import Tensor

from negaware.objectives.ops import Reduction
from negaware.objectives.whole_groups import Whole

with suppress(ImportError):  # shapes are checked where jaxtyping is installed (the tests); torch alone is enough
    from jaxtyping import Bool, Float, Int, Shaped

P = ParamSpec("P")
Function = TypeVar("Function", bound=Callable[..., "Terms"])

TOKEN_REDUCTIONS: tuple[Reduction, ...] = ("token_mean", "sequence_mean", "constant")
"""The reductions of a loss with one term for each token."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a loss is given: B answers of at most T tokens, padded, with their verdicts.

    logprobs, old_logprobs [B, T]: log π_θ, which has the gradient, and log π_old; mask [B, T]: true on an answer's
    tokens; correct [B]: the verdicts; pass_rate [B]: r̂ of each answer's group; group [B]: the number of that group in
    the mini-batch, None if unknown; whole: all answers of these groups, if the objective sees groups; centred_reward,
    reward_std [B]: if rewards are more than verdicts, the reward minus the group's mean, and the group's population
    standard deviation, else None.
    """

    logprobs: Float[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    mask: Shaped[Tensor, "B T"]
    correct: Bool[Tensor, " B"]
    pass_rate: Float[Tensor, " B"]
    group: Int[Tensor, " B"] | None = None
    whole: Whole | None = field(default=None, kw_only=True)
    centred_reward: Float[Tensor, " B"] | None = field(default=None, kw_only=True)
    reward_std: Float[Tensor, " B"] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss returns: the loss of each token [B, T], 0 where the mask is 0; and numbers of tokens, by name.

    faults: for a user's loss, each possible fault as a sentence, and whether the loss has it: a tensor, so that a GPU
    isn't waited for.
    """

    per_token: Tensor
    counts: Mapping[str, Tensor] = field(default_factory=dict)
    faults: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Option:
    """An option's meaning and its bound, if it has one; type and default are the parameter's."""

    help: str = ""
    above: int | float | None = None
    at_least: int | float | None = None


@dataclass(frozen=True, slots=True)
class Keyword:
    """An option as a loss declares it. `default` is REQUIRED where there is none."""

    type: Any
    default: Any
    option: Option


REQUIRED = inspect.Parameter.empty


class UserLossError(ValueError):
    """A user's loss raises, or what it returns can't be trained on."""


def require_sound(name: str, faults: Mapping[str, Any]) -> None:
    """UserLossError for the first of these faults that the loss has; see `Terms`."""
    for sentence, has_fault in faults.items():
        if has_fault:
            raise UserLossError(f"the loss {name} {sentence}")


@dataclass(frozen=True, slots=True)
class Objective:
    """An objective: `terms` returns its loss and counts; called with tensors it returns the per-token loss [B, T].

    `function` returns the same terms without checking the faults. `reduction` is its paper's; `needs_group`: with K = 1
    it learns nothing; `is_user_loss`: the user wrote it.
    """

    name: str
    function: Callable[..., Terms]
    reduction: Reduction
    paper: str = ""
    needs_group: bool = True
    is_user_loss: bool = False

    def terms(self, answers: Answers, **options: Any) -> Terms:
        """The per-token loss and its counts. UserLossError for a user's loss with a fault."""
        terms = self.function(answers, **options)
        require_sound(self.name, terms.faults)
        return terms

    def __call__(self, *tensors: Tensor, **options: Any) -> Tensor:
        """The per-token loss [B, T] of logprobs, old_logprobs, mask, correct, pass_rate; group if it sees groups."""
        return self.terms(Answers(*tensors), **options).per_token

    def counts(self, *tensors: Tensor, **options: Any) -> Mapping[str, Tensor]:
        """How many tokens each safeguard changes, for the same tensors."""
        return self.terms(Answers(*tensors), **options).counts

    @property
    def sees_groups(self) -> bool:
        """Whether it is a loss of whole groups (`of_groups`), which needs `Answers.whole`."""
        return getattr(self.function, "sees_groups", False)

    @property
    def keywords(self) -> dict[str, Keyword]:
        """Its options by name, as its function declares them."""
        return keywords_of(self.function)

    def reduction_under(self, options: Mapping[str, Any], chosen: Reduction | None = None) -> Reduction:
        """The `chosen` reduction, by default the objective's. ValueError for one that its loss can't have.

        A ratio of whole answers gives one term for each answer, spread over its tokens: they are summed, and the mean
        is over answers. A loss of whole groups has one term for each group: the mean is over groups. Other losses have
        a term for each token, whose sum would weight an answer by its length. For a user's loss of answers any is
        allowed.
        """
        if self.sees_groups and chosen not in (None, "group_mean"):
            raise ValueError(
                f"reduction is {chosen}, but {self.name} has one term a group, whose reduction is group_mean; leave it "
                "out"
            )
        if self.is_user_loss or self.sees_groups:
            return chosen or self.reduction
        if options.get("ratio") == "sequence":
            if chosen not in (None, "sequence_sum"):
                raise ValueError(
                    f"reduction is {chosen}, but with ratio sequence an answer has one term, whose reduction is "
                    "sequence_sum; leave it out, or take ratio token"
                )
            return "sequence_sum"
        if chosen in ("sequence_sum", "group_mean"):
            whose = "ratio sequence's" if chosen == "sequence_sum" else "whole groups'"
            raise ValueError(
                f"reduction is {chosen}, which is {whose} alone; choose from {', '.join(TOKEN_REDUCTIONS)}"
            )
        return chosen or self.reduction


OBJECTIVES: dict[str, Objective] = {}
"""All of them by name, once `negaware.objectives` is imported."""


def objective(*, reduction: Reduction, paper: str, needs_group: bool = True) -> Callable[[Function], Function]:
    """Adds a function of `Answers` to OBJECTIVES, under its name."""

    def enter(function: Function) -> Function:
        OBJECTIVES[function.__name__] = Objective(function.__name__, function, reduction, paper, needs_group)
        return function

    return enter


def five_tensors(
    function: Callable[Concatenate[Answers, P], Terms],
) -> Callable[Concatenate[Tensor, Tensor, Tensor, Tensor, Tensor, P], Tensor]:
    """An objective as a free function, NAME_loss: five tensors and the same options in, per-token loss out."""

    def loss(
        logprobs: Float[Tensor, "B T"],
        old_logprobs: Float[Tensor, "B T"],
        mask: Shaped[Tensor, "B T"],
        correct: Bool[Tensor, " B"],
        pass_rate: Float[Tensor, " B"],
        *more: Any,
        **options: Any,
    ) -> Float[Tensor, "B T"]:
        return function(Answers(logprobs, old_logprobs, mask, correct, pass_rate), *more, **options).per_token

    signature = inspect.signature(loss)
    tensors = list(signature.parameters.values())[:5]
    options = [each for each in inspect.signature(function).parameters.values() if each.kind is each.KEYWORD_ONLY]
    loss.__name__ = loss.__qualname__ = f"{getattr(function, '__name__', 'own')}_loss"
    loss.__doc__, loss.__module__ = function.__doc__, function.__module__
    loss.__signature__ = signature.replace(parameters=[*tensors, *options])  # type: ignore[attr-defined]
    return loss


def keywords_of(function: Callable[..., Any]) -> dict[str, Keyword]:
    """The options of a loss: its keyword-only parameters. Without an annotation the type is that of the default.

    NameError and other errors for an annotation that can't be evaluated.
    """
    found = {}
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        hint, option = parameter.annotation, Option()
        if isinstance(hint, str):  # `from __future__ import annotations`
            hint = eval(hint, names)
        if hint is parameter.empty:
            hint = Any if parameter.default in (None, parameter.empty) else type(parameter.default)
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            option = next((note for note in notes if isinstance(note, Option)), option)
        found[name] = Keyword(hint, parameter.default, option)
    return found


def try_out(objective: Objective, options: Mapping[str, Any]) -> None:
    """ValueError for options that the loss refuses; it is tried on `made_up_answers`."""
    for name, keyword in objective.keywords.items():
        choices = get_args(keyword.type) if get_origin(keyword.type) is Literal else ()
        if choices and name in options and options[name] not in choices:
            raise ValueError(f"{name} is {options[name]!r}; choose from {', '.join(map(str, choices))}.")
    with torch.enable_grad():
        objective.terms(made_up_answers(), **options)


def made_up_answers(
    verdicts: Sequence[bool] = (True, False, False, False, True, True, False, True), shaped: bool = False
) -> Answers:
    """Two groups of four answers with these verdicts, off-policy; `shaped`: with rewards that differ from verdicts."""
    lengths = torch.tensor([5, 1, 3, 2, 4, 2, 5, 3])
    correct = torch.tensor(verdicts)
    mask = torch.arange(5) < lengths[:, None]
    steps = torch.arange(40.0).view(8, 5).sin()  # log-ratios from −1/2 to 1/2
    old = torch.where(mask, -1.5 - steps.roll(1), 0.0)
    rewards = (correct.float() - lengths / 10).view(2, 4)
    centred = rewards - rewards.mean(1, keepdim=True)
    return Answers(
        logprobs=torch.where(mask, old + steps / 2, 0.0).requires_grad_(),
        old_logprobs=old,
        mask=mask,
        correct=correct,
        pass_rate=correct.view(2, 4).float().mean(1).repeat_interleave(4),
        group=torch.arange(2).repeat_interleave(4),
        centred_reward=centred.flatten() if shaped else None,
        reward_std=centred.square().mean(1).sqrt().repeat_interleave(4) if shaped else None,
    )


def reads_rewards(objective: Objective, options: Mapping[str, Any]) -> bool:
    """Whether the loss changes if answers have rewards other than their verdicts."""
    by_verdict, by_reward = (objective.terms(made_up_answers(shaped=shaped), **options) for shaped in (False, True))
    return not torch.equal(by_verdict.per_token, by_reward.per_token)


def teaching_rates(objective: Objective, options: Mapping[str, Any]) -> frozenset[float]:
    """Holds 0.0 if groups that are all wrong have a gradient, 1.0 if groups that are all right have one.

    ValueError for a gradient that isn't finite.
    """
    found = {}
    for right in (False, True):
        sides = gradient_weights(objective, made_up_answers([right] * 8), options)
        if not all(bool(side.isfinite()) for side in sides):
            raise ValueError(
                f"The loss {objective.name} has no finite gradient on a group whose answers are all "
                f"{'right' if right else 'wrong'}, and rollout.filter none trains on those too; correct it (does it "
                "divide by a pass rate?), or set the filter to informative."
            )
        found[float(right)] = any(bool(side != 0) for side in sides)
    return frozenset(rate for rate, teaches in found.items() if teaches)


def gradient_weights(objective: Objective, answers: Answers, options: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Σ|∂loss/∂logprob| over the tokens of right and of wrong answers: the weight of each side."""
    with torch.enable_grad():
        leaf = answers.logprobs.detach().requires_grad_()
        loss = objective.terms(replace(answers, logprobs=leaf), **options).per_token
        (weights,) = torch.autograd.grad(loss.sum(), leaf)
    return weights[answers.correct].abs().sum(), weights[~answers.correct].abs().sum()
