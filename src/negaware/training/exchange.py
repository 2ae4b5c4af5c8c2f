"""Tokens on their way from the rank that sampled them to the rank that trains them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from negaware.ranks import Ranks
from negaware.training.pack import Answer, MicroBatch, Row
from negaware.types import Completion

Place = tuple[int, int]
"""Of an answer: its mini-batch, and its number there."""
Parcel = tuple[list[Place], NDArray[np.int32], NDArray[np.float32]]
"""The places of some answers, their tokens, one answer's after the other's, and the log-probabilities of these."""


def with_tokens(mini_batches: Sequence[Sequence[Sequence[MicroBatch]]], ranks: Ranks) -> list[list[MicroBatch]]:
    """This rank's micro-batches of each mini-batch, with all their answers' tokens.

    `mini_batches[m][rank]` is what each rank trains of a mini-batch, as all ranks know it. No rank is sent anything
    else.
    """
    own = [by_rank[ranks.rank] for by_rank in mini_batches]
    if ranks.size == 1:
        return [list(micro_batches) for micro_batches in own]
    others = [[by_rank[rank] for by_rank in mini_batches] if rank != ranks.rank else [] for rank in range(ranks.size)]
    arriving = {place: answer.completion for place, answer in _answers(own)}
    for places, token_ids, logprobs in ranks.exchange([_parcel(each) for each in others]):
        ends = np.cumsum([arriving[place].num_tokens for place in places])[:-1]
        parts = np.split(token_ids, ends), np.split(logprobs, ends)  # of nothing at all, one part
        for place, tokens, recorded in zip(places, *parts, strict=bool(places)):
            arriving[place] = replace(arriving[place], token_ids=tokens, logprobs=recorded)
    assert all(done.is_here for done in arriving.values())  # a rank that lost some would train on nothing
    return [[_filled(each, index, arriving) for each in micro_batches] for index, micro_batches in enumerate(own)]


def _answers(mini_batches: Sequence[Sequence[MicroBatch]]) -> Iterator[tuple[Place, Answer]]:
    for index, micro_batches in enumerate(mini_batches):
        for row in (row for each in micro_batches if each.counts for row in each.rows):
            yield from (((index, answer.number), answer) for answer in row.answers)


def _parcel(mini_batches: Sequence[Sequence[MicroBatch]]) -> Parcel:
    """What this rank has of the answers in these."""
    here = {place: answer.completion for place, answer in _answers(mini_batches) if answer.completion.is_here}
    token_ids = np.concatenate([np.zeros(0, np.int32), *(done.token_ids for done in here.values())])
    logprobs = np.concatenate([np.zeros(0, np.float32), *(done.logprobs for done in here.values())])
    return list(here), token_ids, logprobs


def _filled(micro_batch: MicroBatch, index: int, arrived: dict[Place, Completion]) -> MicroBatch:
    if not micro_batch.counts:
        return micro_batch
    rows = [
        Row(tuple(replace(answer, completion=arrived[index, answer.number]) for answer in row.answers))
        for row in micro_batch.rows
    ]
    return replace(micro_batch, rows=rows)
