"""The time of a step with answers of different lengths: sampled and trained in turn, carried, or overlapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from negaware.planning.advice import fits, holds_an_answer
from negaware.planning.cost import Seconds, handover_seconds
from negaware.planning.lengths import Lengths
from negaware.planning.memory import server_cache
from negaware.planning.sampling import GoingOn, Sampling, going_on
from negaware.planning.setting import Machine, Sampler, Setting


@dataclass(frozen=True, slots=True)
class Pace:
    """The mean step of a run, after its first steps."""

    seconds: float
    sampling: float
    """Seconds in which engines sample. If they sample while ranks train, these overlap with training."""
    training: float
    tokens_a_second: float
    """Answer tokens a second, divided by the number of GPUs."""
    staleness: float
    """Mean number of updates between the policy that drew a token and the policy that is trained on it."""
    rows: float
    """Mean number of answers that an engine decodes at once."""
    trainers: int
    """GPUs that train; all GPUs if sampling and training take turns."""


def in_turn(setting: Setting, machine: Machine, lengths: Lengths) -> Pace:
    """Staleness 0: a batch is sampled by one policy up to its longest answer; then it is trained."""
    sampling = Sampling(setting, machine, lengths, batches=1)
    sampled, rows = sampling.alone()
    training = training_seconds(setting, machine, lengths)
    period = sampled + training
    return Pace(period, sampled, training, sampling.batch_tokens / period / setting.ranks, 0.0, rows, setting.ranks)


def carried(setting: Setting, machine: Machine, lengths: Lengths, staleness: int) -> Pace:
    """Answers go on across updates; engines wait while ranks train."""
    pause = training_seconds(setting, machine, lengths)
    found = going_on(Sampling(setting, machine, lengths, 1 + staleness), staleness, pause, overlaps=False)
    return _pace(found, staleness, setting.ranks, setting.ranks)


def overlapped(setting: Setting, machine: Machine, lengths: Lengths, staleness: int) -> Pace | None:
    """Servers sample on some GPUs while the others train, with the fastest split of the GPUs; None if no split fits."""
    paces = [
        pace_of_split(servers, trainers, machine, lengths, staleness) for servers, trainers in splits(setting, machine)
    ]
    return min(paces, key=lambda pace: pace.seconds, default=None)


def splits(setting: Setting, machine: Machine) -> Iterator[tuple[Setting, Setting]]:
    """The settings of the servers and of the ranks, for each split of the GPUs that fits."""
    server = Sampler("vllm", setting.sampler.tensor_parallel, server_cache(setting, machine))
    for sampling in range(server.tensor_parallel, setting.ranks, server.tensor_parallel):
        servers = replace(setting, ranks=sampling, sampler=server)
        trainers = replace(setting, ranks=setting.ranks - sampling, sampler=Sampler("vllm_server"))
        if holds_an_answer(servers, machine) and fits(trainers, machine):
            yield servers, trainers


def pace_of_split(servers: Setting, trainers: Setting, machine: Machine, lengths: Lengths, staleness: int) -> Pace:
    """The step with servers and ranks that work at the same time."""
    pause = training_seconds(trainers, machine, lengths)
    found = going_on(Sampling(servers, machine, lengths, 1 + staleness), staleness, pause, overlaps=True)
    return _pace(found, staleness, servers.ranks + trainers.ranks, trainers.ranks)


def training_seconds(setting: Setting, machine: Machine, lengths: Lengths) -> float:
    """Seconds to train on a batch whose answers all have the mean length, and to send the weights to the sampler."""
    spent = Seconds(replace(setting, answer_tokens=round(lengths.mean)), machine)
    is_copied = setting.sampler.name == "vllm_server" or setting.ranks > 1
    return spent.training + spent.communication + is_copied * handover_seconds(setting, machine)


def _pace(found: GoingOn, staleness: int, gpus: int, trainers: int) -> Pace:
    speed = found.sampling.batch_tokens / found.period / gpus
    return Pace(found.period, found.busy, found.pause, speed, found.staleness(staleness), found.rows, trainers)
