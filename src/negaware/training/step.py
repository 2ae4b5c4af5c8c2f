"""One rollout's learning: mini-batches of groups, micro-batches of rows, one optimizer step a mini-batch.

The denominator of a mini-batch's loss is counted before the first micro-batch runs, so the gradient doesn't depend on
how the mini-batch was split, over micro-batches or over ranks. Every rank knows the lengths and verdicts of all
answers, and gets the tokens of those that it trains. Of an objective that sees whole groups, a pass before it gathers
what it needs of all answers. A loss or gradient that is not finite stops before the optimizer sees it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from negaware.models.logprobs import token_logprobs
from negaware.models.network import Network
from negaware.objectives.contract import Answers, Objective, Terms, UserLossError, require_sound
from negaware.objectives.ops import Reduction, answer_lengths, denominator, log_ratio, reduce_loss
from negaware.objectives.whole_groups import Whole, WholeGroups
from negaware.ranks import ALONE, Ranks
from negaware.training.exchange import with_tokens
from negaware.training.optimizer import MasterOptimizer
from negaware.training.options import TrainingOptions
from negaware.training.pack import (
    IDLE,
    Answer,
    Batch,
    MicroBatch,
    Row,
    answers_of,
    answers_per_row,
    collate,
    divided,
    micro_batches,
    rows_of,
)
from negaware.training.tally import Tally
from negaware.types import Group


class NonFiniteLossError(ValueError):
    """The loss or a gradient is NaN or infinite; the weights are as they were before the step."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The objective with its options, and the temperature of the log-probabilities."""

    objective: Objective
    options: dict[str, Any]
    temperature: float
    max_answer_tokens: int
    reduction: Reduction | None = None
    """None: the objective's own."""


class Trainer:
    """Trains a model on groups. `step` is one rollout's worth of optimizer steps; the run has `num_steps` rollouts.

    A whole rollout has so many `questions`: one with fewer groups has mini-batches of the same size, and so fewer of
    them. Without it every rollout counts as whole. On several ranks the model is in shards, and all ranks call `step`
    with the same groups.
    """

    def __init__(
        self,
        network: Network,
        loss: LossSettings,
        options: TrainingOptions,
        num_steps: int,
        ranks: Ranks = ALONE,
        questions: int | None = None,
    ) -> None:
        if not network.masters:
            raise ValueError("The network was loaded to be sampled alone; load it with trained=True to train it.")
        self.network, self.loss, self.options, self.questions = network, loss, options, questions
        self.ranks, self.device, self.decoder = ranks, network.device, network.decoder
        self.optimizer = MasterOptimizer(network.model, network.masters, options, num_steps)
        if options.activations == "recomputed":
            self.decoder.recompute_activations()

    def step(
        self, groups: Sequence[Group], seed: int, on_progress: Callable[[int], None] | None = None
    ) -> dict[str, float]:
        """Trains on the groups once, in mini-batches drawn by `seed`; returns the step's metrics.

        `on_progress` is told the answer tokens trained since it was last called. Raises NonFiniteLossError.
        """
        self.decoder.refresh()
        questions = [answers_of(group) for group in groups]
        random.Random(seed).shuffle(questions)
        num_steps = self._num_mini_batches(len(questions))
        # Every num_steps-th question: mini-batches differ by one question at most and none is dropped.
        mini_batches = [_numbered(questions[index::num_steps]) for index in range(num_steps)]
        packed = with_tokens([self.pack(mini_batch) for mini_batch in mini_batches], self.ranks)
        if self.options.old_logprobs == "recomputed":
            packed = self._recomputed(packed)
        spans = (span for answers in questions for answer in answers for span in answer.completion.spans)
        newest = max(span.version for span in spans)
        tally = Tally(self.device)
        for index, own in enumerate(packed):
            self.optimizer.place = (index, num_steps)
            # Later mini-batches differ from the sampler by what was learnt, not by numerics.
            compared = newest if index == 0 else None
            self._optimizer_step(own, mini_batches[index], tally, compared, on_progress)
        self.optimizer.rollouts_done += 1
        self.optimizer.place = (0, 1)
        return tally.metrics(self.ranks)

    def _num_mini_batches(self, num_groups: int) -> int:
        """⌊groups ÷ size⌋, at least one, where a mini-batch of a whole rollout has `size` questions."""
        whole = max(num_groups, self.questions or num_groups)
        return max(1, num_groups * min(self.options.optimizer_steps, whole) // whole)

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log π_θ and entropy of each answer token [N] of a micro-batch."""
        return self.network.within(self._logprobs, batch)

    def _logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        predicting = self.decoder.hidden_states(batch).index_select(0, batch.source)
        head = self.network.head.of(self.network.model)
        return token_logprobs(predicting, head, batch.targets, self.loss.temperature)

    def pack(self, questions: Sequence[Sequence[Answer]]) -> list[list[MicroBatch]]:
        """Each rank's micro-batches of the questions' answers, as many for one as for any other.

        The ranks exchange weights in every pass, so one that has fewer runs a row of one token, for nothing.
        """
        rows: list[Row] = []
        max_tokens = self.options.micro_batch_tokens
        for answers in questions:
            rows += rows_of(answers, answers_per_row(answers, max_tokens) if self.decoder.shares_questions else 1)
        by_rank = [
            [MicroBatch(batch) for batch in micro_batches(part, max_tokens)] for part in divided(rows, self.ranks.size)
        ]
        most = max(map(len, by_rank))
        return [own + [IDLE] * (most - len(own)) for own in by_rank]

    def _optimizer_step(
        self,
        own: Sequence[MicroBatch],
        questions: Sequence[Sequence[Answer]],
        tally: Tally,
        compared_version: int | None,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        """One step on this rank's part of a mini-batch; `questions` has the answers of all ranks.

        What the sampler recorded is compared with the trainer's on answers of the `compared_version`. Nothing is read
        from the device until all micro-batches are under way: then once.
        """
        loss = self.loss
        reduction = loss.objective.reduction_under(loss.options, loss.reduction)
        lengths = [answer.num_tokens for answers in questions for answer in answers]
        divisor = denominator(reduction, sum(lengths), len(lengths), loss.max_answer_tokens, len(questions))
        whole = self._whole_groups(own, questions) if loss.objective.sees_groups else None
        own_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        faults: dict[str, Tensor] = {}
        for micro_batch in own:
            batch = collate(micro_batch.rows, self.device)
            logprobs, entropy = self.logprobs(batch)
            if not micro_batch.counts:
                (0.0 * logprobs.sum()).backward()
                continue
            answers = answers_in(batch, logprobs, whole)
            terms = self._terms(answers)
            faults |= {sentence: faults.get(sentence, 0) + is_so for sentence, is_so in terms.faults.items()}
            own_loss += self._learn(batch, answers, terms, reduction, divisor, tally)
            tally.sums["tokens"] += len(entropy)
            tally.add(entropy=entropy.sum(), **{f"share_{name}": count for name, count in terms.counts.items()})
            if compared_version is not None:
                tally.add(**sampler_difference(batch, logprobs, compared_version))
            if on_progress:
                on_progress(len(batch.targets))
        norm = self.optimizer.gradient_norm()
        read = tally.read(loss=own_loss, norm=norm, **faults)
        try:
            require_sound(loss.objective.name, {sentence: read[sentence] for sentence in faults})
        except UserLossError:
            self.optimizer.discard_gradients()
            raise
        total = self.ranks.sums({"loss": read["loss"]})["loss"]
        self._require_finite(total, "loss")
        self._require_finite(read["norm"], "gradient norm")
        tally.add_step(total, read["norm"], self.optimizer.learning_rate())
        self.optimizer.step(norm)
        self.decoder.refresh()

    def _learn(
        self, batch: Batch, answers: Answers, terms: Terms, reduction: Reduction, divisor: int, tally: Tally
    ) -> Tensor:
        """A micro-batch's backward pass; its part of the loss []."""
        per_token, by_itself = terms.per_token, None
        answers.logprobs.retain_grad()
        if self.options.importance_weight_cap is not None:
            weights = importance_weights(batch, answers.old_logprobs, self.options.importance_weight_cap)
            tally.add(importance_weight=torch.where(answers.mask, weights, 0).sum())
            # What the loss gives before it is weighted can't be told from the gradient after.
            (by_itself,) = torch.autograd.grad(per_token.sum(), answers.logprobs, retain_graph=True)
            per_token = per_token * weights
        value = reduce_loss(per_token, answers.mask, reduction, divisor)
        value.backward()
        gradient = answers.logprobs.grad
        assert gradient is not None
        if by_itself is None:
            by_itself = before_reduction(gradient, answers.mask, reduction, divisor)
        by_answer = by_itself.abs().sum(1)
        tally.add(
            weight_right=torch.where(answers.correct, by_answer, 0).sum(),
            weight_wrong=torch.where(answers.correct, 0, by_answer).sum(),
        )
        return value.detach()

    def _whole_groups(self, own: Sequence[MicroBatch], questions: Sequence[Sequence[Answer]]) -> WholeGroups:
        """All answers of a mini-batch, all ranks', under the present weights.

        By the very pass that trains, as `_recomputed`, but nothing of it is kept: no gradient flows through it.
        """
        numbers: list[int] = []
        found: list[Tensor] = []
        for micro_batch in own:
            batch = collate(micro_batch.rows, self.device)
            logprobs = self.logprobs(batch)[0].detach()
            if micro_batch.counts:
                answers = answers_in(batch, logprobs)
                numbers += [answer.number for answer in batch.answers]
                found.append(log_ratio(answers.logprobs, answers.old_logprobs, answers.mask).sum(1))
        sums = dict(zip(numbers, torch.cat(found).tolist() if found else [], strict=True))
        sums_of_all = {number: total for of_rank in self.ranks.gather(sums) for number, total in of_rank.items()}
        everyone = [answer for answers in questions for answer in answers]
        return WholeGroups(
            log_ratio=torch.tensor([sums_of_all[answer.number] for answer in everyone], device=self.device),
            length=torch.tensor([answer.num_tokens for answer in everyone], device=self.device),
            correct=torch.tensor([answer.correct for answer in everyone], device=self.device),
            group=torch.tensor([answer.group for answer in everyone], device=self.device),
            count=len(questions),
        )

    def _terms(self, answers: Answers) -> Terms:
        """The loss. One of a user's own that fails leaves no gradients behind."""
        try:
            return self.loss.objective.function(answers, **self.loss.options)
        except UserLossError:
            self.optimizer.discard_gradients()
            raise

    def _require_finite(self, value: float, what: str) -> None:
        if value - value == 0:
            return
        self.optimizer.discard_gradients()
        own = self.loss.objective
        culprit = f"Mend the loss {own.name} if it can have such a gradient. " if own.is_user_loss else ""
        raise NonFiniteLossError(
            f"The {what} of optimizer step {self.optimizer.num_steps_done + 1} is {value}; the weights are as they "
            f"were before it. {culprit}In a new run, lower training.learning_rate, or set training.compute_dtype to "
            "float32 to find out why."
        )

    def _recomputed(self, packed: Sequence[Sequence[MicroBatch]]) -> list[list[MicroBatch]]:
        """The same rows with the trainer's own log-probabilities as π_old (recorded ones kept for comparison).

        By the very pass that trains, gradients and all: without them other kernels would round otherwise.
        """
        found = [
            self.logprobs(collate(micro_batch.rows, self.device))[0].detach() for own in packed for micro_batch in own
        ]
        flat = torch.cat(found).cpu()  # read once, when all of it is under way
        rows = [row for own in packed for micro_batch in own for row in micro_batch.rows]
        old = iter(flat.split([answer.num_tokens for row in rows for answer in row.answers]))

        def recomputed(row: Row) -> Row:
            return Row(tuple(replace(answer, recomputed_logprobs=next(old).numpy()) for answer in row.answers))

        return [[replace(each, rows=[recomputed(row) for row in each.rows]) for each in own] for own in packed]


def _numbered(questions: Sequence[Sequence[Answer]]) -> list[list[Answer]]:
    """The answers of a mini-batch's questions, each with the number of its question and its own."""
    numbers = iter(range(sum(map(len, questions))))
    return [
        [replace(answer, group=group, number=next(numbers)) for answer in answers]
        for group, answers in enumerate(questions)
    ]


def answers_in(batch: Batch, logprobs: Tensor, groups: WholeGroups | None = None) -> Answers:
    """What an objective is given, [A, longest] and [A], from a micro-batch's flat log-probabilities.

    `groups`: the whole mini-batch, for an objective that sees whole groups.
    """
    return Answers(
        logprobs=batch.pad(logprobs),
        old_logprobs=batch.pad(batch.old_logprobs),
        mask=batch.pad(torch.ones_like(batch.old_logprobs)).bool(),
        correct=batch.correct,
        pass_rate=batch.pass_rate,
        group=batch.group,
        whole=None if groups is None else Whole(groups, batch.number),
        centred_reward=batch.centred_reward,
        reward_std=batch.reward_std,
    )


def before_reduction(gradient: Tensor, mask: Tensor, reduction: Reduction, divisor: int) -> Tensor:
    """The gradient [A, longest] of the per-token losses' sum, from the gradient of what `reduce_loss` makes of them.

    Of losses of which a `sequence_mean` is taken an answer's may depend on its own tokens alone.
    """
    gradient = gradient * divisor
    return gradient * answer_lengths(mask)[:, None] if reduction == "sequence_mean" else gradient


def sampler_difference(batch: Batch, logprobs: Tensor, version: int) -> dict[str, Tensor]:
    """Σ|log π_sampler − log π_trainer| over the tokens that this version of the policy drew, and how many they are.

    Those carried over from before were drawn by other weights than the trainer's.
    """
    is_compared = batch.versions == version
    difference = (logprobs.detach() - batch.recorded_logprobs).abs()
    return {"difference": torch.where(is_compared, difference, 0).sum(), "compared_tokens": is_compared.sum()}


def importance_weights(batch: Batch, old: Tensor, cap: float) -> Tensor:
    """min(π_old / π_sampler, cap) of each token, [A, longest], from the padded log π_old; without a gradient.

    Truncated importance sampling (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training"): what was sampled counts as often as π_old would have sampled it, but no token more than `cap` times.
    """
    return (old - batch.pad(batch.recorded_logprobs)).exp().clamp(max=cap)
