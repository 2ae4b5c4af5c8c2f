"""A step with answers of different lengths: sampled and trained in turn, carried across updates, or both at once.

It knows how long training and sampling take, not how that comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from negaware.planning.advice import fits, holds_an_answer
from negaware.planning.cost import handover_seconds, seconds
from negaware.planning.lengths import Lengths
from negaware.planning.memory import server_cache
from negaware.planning.sampling import Sampling, going_on
from negaware.planning.setting import Machine, Sampler, Setting


@dataclass(frozen=True, slots=True)
class Pace:
    """A step, one after the other when the run has settled."""

    seconds: float
    sampling: float
    """Seconds in which engines sample, of those that it takes; all of it where they sample while ranks train."""
    training: float
    tokens_a_second: float
    """Of answers, each GPU's."""
    staleness: float
    """Updates between a token's policy and the one that is trained on it, on average."""
    rows: float
    """Answers decoded at once by an engine, on average."""
    trainers: int
    """GPUs that train; all of them where it takes turns."""


def in_turn(setting: Setting, machine: Machine, lengths: Lengths) -> Pace:
    """Today's path: a batch is sampled by one policy, and the longest answer waited for; then it is trained."""
    sampling = Sampling(setting, machine, lengths, batches=1)
    sampled, rows = sampling.alone()
    training = training_seconds(setting, machine, lengths)
    return _pace(setting, lengths, sampled + training, sampled, training, 0.0, rows, setting.ranks)


def carried(setting: Setting, machine: Machine, lengths: Lengths, staleness: int) -> Pace:
    """Answers go on across updates, but engines wait while ranks train."""
    pause = training_seconds(setting, machine, lengths)
    found = going_on(Sampling(setting, machine, lengths, 1 + staleness), staleness, pause, overlaps=False)
    stale = found.staleness(staleness)
    return _pace(setting, lengths, found.period, found.busy, pause, stale, found.rows, setting.ranks)


def overlapped(setting: Setting, machine: Machine, lengths: Lengths, staleness: int) -> Pace | None:
    """Servers on GPUs of their own sample while the other GPUs train, split as is fastest; None if no split fits."""
    paces = [
        pace_of_split(servers, trainers, machine, lengths, staleness) for servers, trainers in splits(setting, machine)
    ]
    return min(paces, key=lambda pace: pace.seconds, default=None)


def splits(setting: Setting, machine: Machine) -> Iterator[tuple[Setting, Setting]]:
    """Servers, as they sample, and ranks, as they train, for each way to split the GPUs that fits."""
    server = Sampler("vllm", setting.sampler.tensor_parallel, server_cache(setting, machine))
    for sampling in range(server.tensor_parallel, setting.ranks, server.tensor_parallel):
        servers = replace(setting, ranks=sampling, sampler=server)
        trainers = replace(setting, ranks=setting.ranks - sampling, sampler=Sampler("vllm_server"))
        if holds_an_answer(servers, machine) and fits(trainers, machine):
            yield servers, trainers


def pace_of_split(servers: Setting, trainers: Setting, machine: Machine, lengths: Lengths, staleness: int) -> Pace:
    """Overlapped, with the GPUs split so."""
    pause = training_seconds(trainers, machine, lengths)
    found = going_on(Sampling(servers, machine, lengths, 1 + staleness), staleness, pause, overlaps=True)
    both = replace(servers, ranks=servers.ranks + trainers.ranks)
    stale = found.staleness(staleness)
    return _pace(both, lengths, found.period, found.busy, pause, stale, found.rows, trainers.ranks)


def training_seconds(setting: Setting, machine: Machine, lengths: Lengths) -> float:
    """Training on a batch whose answers all have the mean length, and its weights handed to the sampler."""
    spent = seconds(replace(setting, answer_tokens=round(lengths.mean)), machine)
    is_copied = setting.sampler.name == "vllm_server" or setting.ranks > 1
    return spent.training + spent.communication + is_copied * handover_seconds(setting, machine)


def _pace(
    setting: Setting,
    lengths: Lengths,
    period: float,
    sampling: float,
    training: float,
    staleness: float,
    rows: float,
    trainers: int,
) -> Pace:
    tokens = setting.questions * setting.completions * lengths.mean
    return Pace(period, sampling, training, tokens / period / setting.ranks, staleness, rows, trainers)
