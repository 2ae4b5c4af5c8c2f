"""Groups → rows: a question once and its answers after it, where that saves work; then micro-batches of rows.

An answer sees its question and itself only, at the positions it would have alone, so its log-probabilities are the
same in any layout. Nothing here knows the objective or the model's weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from negaware.types import Completion, Group

PADDING = -1  # segment number of padding; 0 is the question, 1 … its answers


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """One completion as the trainer needs it: with its prompt, its verdict and its group's pass rate.

    `group` is its group's number in the mini-batch, wherever its rows go, and `number` its own. Where rewards are
    shaped, its reward less the group's mean, and the group's standard deviation. What the trainer computed again of it,
    float32 [T], is π_old in the place of what the sampler recorded.
    """

    prompt_ids: tuple[int, ...]
    completion: Completion
    correct: bool
    pass_rate: float
    group: int = 0
    number: int = 0
    centred_reward: float | None = None
    reward_std: float | None = None
    recomputed_logprobs: NDArray[np.float32] | None = None

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.completion.num_tokens

    @property
    def old_logprobs(self) -> NDArray[np.float32]:
        """log π_old of each token, [T]."""
        return self.completion.logprobs if self.recomputed_logprobs is None else self.recomputed_logprobs


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A question followed by some of its answers, without each one's last token, which predicts nothing."""

    answers: tuple[Answer, ...]

    @property
    def length(self) -> int:
        """Tokens that enter the model."""
        return len(self.answers[0].prompt_ids) + sum(answer.num_tokens - 1 for answer in self.answers)

    @property
    def last_position(self) -> int:
        """The highest position of any token."""
        return len(self.answers[0].prompt_ids) + max(answer.num_tokens for answer in self.answers) - 2


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that run together; they count unless they only keep a rank busy."""

    rows: list[Row]
    counts: bool = True


IDLE = MicroBatch([Row((Answer((0,), Completion.drawn([0], [0.0], "length", 0, 0), False, 0.0),))], counts=False)
"""A row of one token, of nobody."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch. R rows of T tokens enter the model; A answers of N tokens in all come out.

    tokens, positions, segments: [R, T]; source: [N], where in the flat [R·T] each answer token is predicted;
    targets: [N]; answer_index, answer_position: [N], where each token belongs in a padded [A, longest] tensor;
    recorded_logprobs, old_logprobs: [N], float32, the sampler's and π_old's; versions: [N], of the policy that drew
    each; correct, pass_rate, group, number, centred_reward, reward_std: [A], as `Answer` has them.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    source: Tensor
    targets: Tensor
    answer_index: Tensor
    answer_position: Tensor
    recorded_logprobs: Tensor
    old_logprobs: Tensor
    versions: Tensor
    correct: Tensor
    pass_rate: Tensor
    group: Tensor
    number: Tensor
    centred_reward: Tensor | None
    reward_std: Tensor | None
    rows: tuple[Row, ...]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All answers, row by row."""
        return tuple(answer for row in self.rows for answer in row.answers)

    @property
    def question_lengths(self) -> list[int]:
        """Each row's, in tokens."""
        return [len(row.answers[0].prompt_ids) for row in self.rows]

    @property
    def answer_lengths(self) -> list[list[int]]:
        """Each row's, in tokens that enter the model."""
        return [[answer.num_tokens - 1 for answer in row.answers] for row in self.rows]

    def pad(self, flat: Tensor) -> Tensor:
        """Per-token values [N] as [A, longest], 0 where an answer has no token."""
        longest = max(answer.num_tokens for answer in self.answers)
        padded = flat.new_zeros(len(self.answers), longest)
        return padded.index_put((self.answer_index, self.answer_position), flat)


def answers_of(group: Group) -> list[Answer]:
    """The group's completions for training."""
    pass_rate = group.pass_rate
    answers = [
        Answer(group.prompt_ids, done, verdict.correct, pass_rate)
        for done, verdict in zip(group.completions, group.verdicts, strict=True)
    ]
    if group.rewards is None:
        return answers
    if min(group.rewards) == max(group.rewards):  # exactly 0: divided by what rounding leaves, it would be ±1
        centred, std = [0.0] * len(answers), 0.0
    else:
        mean = fmean(group.rewards)
        centred, std = [reward - mean for reward in group.rewards], pstdev(group.rewards, mean)
    return [replace(answer, centred_reward=own, reward_std=std) for answer, own in zip(answers, centred, strict=True)]


def rows_of(answers: Sequence[Answer], answers_per_row: int) -> list[Row]:
    """One question's answers in rows of at most `answers_per_row`, answers of similar length together."""
    ordered = sorted(answers, key=lambda answer: answer.num_tokens)
    return [Row(tuple(ordered[i : i + answers_per_row])) for i in range(0, len(ordered), answers_per_row)]


def answers_per_row(answers: Sequence[Answer], max_tokens: int) -> int:
    """How many of one question's answers a row should hold: as many as `max_tokens` allow, in rows alike."""
    for num_rows in range(1, len(answers)):
        num_answers = -(-len(answers) // num_rows)
        if max(row.length for row in rows_of(answers, num_answers)) <= max_tokens:
            return num_answers
    return 1


def micro_batches(rows: Sequence[Row], max_tokens: int) -> list[list[Row]]:
    """Rows in groups of at most `max_tokens` tokens, padding counted; a longer row stands alone."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        # Rows come longest first, so the first of a batch is what the others are padded to.
        if batches and (len(batches[-1]) + 1) * batches[-1][0].length <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def divided(rows: Sequence[Row], num_ranks: int) -> list[list[Row]]:
    """The rows of each rank, with about as many tokens: the longest first, each to the rank with fewest so far."""
    found: list[list[Row]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        smallest = tokens.index(min(tokens))
        found[smallest].append(row)
        tokens[smallest] += row.length
    return found


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Rows → the tensors of a micro-batch, all that it needs; a GPU that still computes isn't waited for."""
    width = max(row.length for row in rows)
    last_position = max(row.last_position for row in rows)
    tokens = np.zeros((len(rows), width), np.int64)
    positions, segments = np.empty_like(tokens), np.full_like(tokens, PADDING)
    flat = np.arange(tokens.size).reshape(tokens.shape)
    source: list[NDArray[np.int64]] = []
    for index, row in enumerate(rows):
        prompt = row.answers[0].prompt_ids
        end = len(prompt)
        tokens[index, :end], positions[index, :end], segments[index, :end] = prompt, np.arange(end), 0
        for segment, answer in enumerate(row.answers, start=1):
            start, end = end, end + answer.num_tokens - 1
            tokens[index, start:end] = answer.completion.token_ids[:-1]
            positions[index, start:end] = np.arange(len(prompt), len(prompt) + end - start)
            segments[index, start:end] = segment
            # The question's last token predicts each answer's first.
            source += [flat[index, len(prompt) - 1 : len(prompt)], flat[index, start:end]]
        # Padding goes on counting where the row ends: transformers takes a restart for a packed sequence.
        # It never counts past the last real position, so no table of positions is left.
        padding = np.arange(1, 1 + width - end) + positions[index, end - 1]
        positions[index, end:] = np.minimum(padding, last_position)
    answers = [answer for row in rows for answer in row.answers]
    lengths = [answer.num_tokens for answer in answers]

    def placed(array: NDArray[Any]) -> Tensor:
        # CUDA copies ordinary memory aside before the call returns, so nobody can change it under way.
        return torch.from_numpy(array).to(device, non_blocking=True)

    def joined(parts: Iterable[NDArray[Any]], dtype: type = np.int64) -> Tensor:
        return placed(np.concatenate([*parts], dtype=dtype))

    def each(name: str, dtype: type = np.int64) -> Tensor:
        return placed(np.array([getattr(answer, name) for answer in answers], dtype))

    shaped = answers[0].centred_reward is not None
    return Batch(
        tokens=placed(tokens),
        positions=placed(positions),
        segments=placed(segments),
        source=joined(source),
        targets=joined(answer.completion.token_ids for answer in answers),
        answer_index=joined([np.repeat(np.arange(len(answers)), lengths)]),
        answer_position=joined(map(np.arange, lengths)),
        recorded_logprobs=joined((answer.completion.logprobs for answer in answers), np.float32),
        old_logprobs=joined((answer.old_logprobs for answer in answers), np.float32),
        versions=joined(answer.completion.versions for answer in answers),
        correct=each("correct", np.bool_),
        pass_rate=each("pass_rate", np.float32),
        group=each("group"),
        number=each("number"),
        centred_reward=each("centred_reward", np.float32) if shaped else None,
        reward_std=each("reward_std", np.float32) if shaped else None,
        rows=tuple(rows),
    )
