"""Groups → rows: a question once and its answers after it, where that saves work; then micro-batches of rows.

An answer sees its question and itself only, at the positions it would have alone, so its log-probabilities are the
same in any layout. Nothing here knows the objective or the model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from negaware.models.cuda import block_mask
from negaware.models.shared_rows import SharedRows
from negaware.types import Group

PADDING = -1  # segment number of padding; 0 is the question, 1 … its answers


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion as the trainer needs it: tokens, verdict, its group's pass rate, the policy version that sampled
    it, and two log-probabilities a token: the sampler's, and π_old, the same unless the trainer computed it again.
    `group` is its group's number in the mini-batch, wherever its rows go, and `number` its own. Where rewards are
    shaped, its reward less the group's mean, and the group's standard deviation."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    recorded_logprobs: tuple[float, ...]
    old_logprobs: tuple[float, ...]
    correct: bool
    pass_rate: float
    version: int
    group: int = 0
    number: int = 0
    centred_reward: float | None = None
    reward_std: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A question followed by some of its answers, without each one's last token, which predicts nothing."""

    answers: tuple[Answer, ...]

    @property
    def length(self) -> int:
        """Tokens that enter the model."""
        return len(self.answers[0].prompt_ids) + sum(len(answer.token_ids) - 1 for answer in self.answers)

    @property
    def last_position(self) -> int:
        """The highest position of any token."""
        return len(self.answers[0].prompt_ids) + max(len(answer.token_ids) for answer in self.answers) - 2


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch. R rows of T tokens enter the model; A answers of N tokens in all come out.

    tokens, positions, segments: [R, T]; source: [N], where in the flat [R·T] each answer token is predicted;
    targets: [N]; answer_index, answer_position: [N], where each token belongs in a padded [A, longest] tensor.
    """

    tokens: Tensor
    positions: Tensor
    segments: Tensor
    source: Tensor
    targets: Tensor
    answer_index: Tensor
    answer_position: Tensor
    rows: tuple[Row, ...]

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All answers, row by row."""
        return tuple(answer for row in self.rows for answer in row.answers)

    def attention_inputs(self) -> dict[str, Any]:
        """What keeps the answers of a row apart; nothing where plain causal attention does (padding comes last)."""
        if len(self.answers) == len(self.rows):
            return {}
        if self.segments.is_cuda:
            return {"attention_mask": block_mask(self.segments)}
        return {"attention_mask": self.attention_mask(), "shared_rows": self.shared_rows()}

    def shared_rows(self) -> SharedRows:
        """Where each row's question and answers are."""
        lengths = [[len(answer.token_ids) - 1 for answer in row.answers] for row in self.rows]
        questions = [len(row.answers[0].prompt_ids) for row in self.rows]
        return SharedRows(self.tokens.shape[1], questions, lengths)

    def attention_mask(self) -> Tensor:
        """Who sees whom, [R, 1, T, T]."""
        keys, queries = self.segments[:, None, :], self.segments[:, :, None]
        causal = torch.ones(self.tokens.shape[1], self.tokens.shape[1], dtype=torch.bool, device=keys.device).tril()
        return (causal & ((keys == queries) | (keys == 0)))[:, None]

    def pad(self, flat: Tensor) -> Tensor:
        """Per-token values [N] as [A, longest], 0 where an answer has no token."""
        longest = max(len(answer.token_ids) for answer in self.answers)
        padded = flat.new_zeros(len(self.answers), longest)
        return padded.index_put((self.answer_index, self.answer_position), flat)


def answers_of(group: Group) -> list[Answer]:
    """The group's completions for training."""
    pass_rate = group.pass_rate
    answers = [
        Answer(group.prompt_ids, done.token_ids, done.logprobs, done.logprobs, verdict.correct, pass_rate, done.version)
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
    ordered = sorted(answers, key=lambda answer: len(answer.token_ids))
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


def shares(rows: Sequence[Row], num_shares: int) -> list[list[Row]]:
    """The rows in shares of about as many tokens each: the longest first, each to the share that has fewest yet."""
    found: list[list[Row]] = [[] for _ in range(num_shares)]
    tokens = [0] * num_shares
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        smallest = tokens.index(min(tokens))
        found[smallest].append(row)
        tokens[smallest] += row.length
    return found


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Rows → the tensors of a micro-batch."""
    width = max(row.length for row in rows)
    last_position = max(row.last_position for row in rows)
    tokens, positions, segments = [], [], []
    source: list[int] = []
    targets: list[int] = []
    answer_index: list[int] = []
    answer_position: list[int] = []
    num_answers = 0
    for row_index, row in enumerate(rows):
        prompt = row.answers[0].prompt_ids
        row_tokens, row_positions, row_segments = list(prompt), list(range(len(prompt))), [0] * len(prompt)
        for segment, answer in enumerate(row.answers, start=1):
            start, inputs = len(row_tokens), answer.token_ids[:-1]
            offset = row_index * width
            # The question's last token predicts each answer's first.
            source += [offset + len(prompt) - 1, *range(offset + start, offset + start + len(inputs))]
            targets += answer.token_ids
            answer_index += [num_answers] * len(answer.token_ids)
            answer_position += range(len(answer.token_ids))
            row_tokens += inputs
            row_positions += range(len(prompt), len(prompt) + len(inputs))
            row_segments += [segment] * len(inputs)
            num_answers += 1
        missing = width - len(row_tokens)
        tokens.append(row_tokens + [0] * missing)
        # Padding goes on counting where the row ends: transformers takes a restart for a packed sequence.
        # It never counts past the last real position, so no table of positions is left.
        count = range(row_positions[-1] + 1, row_positions[-1] + 1 + missing)
        positions.append(row_positions + [min(position, last_position) for position in count])
        segments.append(row_segments + [PADDING] * missing)
    return Batch(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.tensor(positions, device=device),
        segments=torch.tensor(segments, device=device),
        source=torch.tensor(source, device=device),
        targets=torch.tensor(targets, device=device),
        answer_index=torch.tensor(answer_index, device=device),
        answer_position=torch.tensor(answer_position, device=device),
        rows=tuple(rows),
    )
