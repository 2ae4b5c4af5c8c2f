"""What to change if a run doesn't fit: the smallest changes that are enough, the cheapest first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from negaware.planning.memory import memory, rows_at_once, sequence_bytes, vllm_cache
from negaware.planning.setting import GIB, Machine, Sampler, Setting


@dataclass(frozen=True, slots=True)
class Change:
    """A new value for a field of the setting, and the option that sets it."""

    option: str
    field: str
    value: Any

    def __str__(self) -> str:
        if not isinstance(self.value, Sampler):
            return f"{self.option} {self.value}"
        cache = "" if self.value.cache is None else f" --rollout.engine.cache_gib {self.value.cache / GIB:g}"
        return f"{self.option} {self.value.tensor_parallel}{cache}"


def fits(setting: Setting, machine: Machine) -> bool:
    """Whether every moment fits a GPU, the engines use all ranks, and each has room for an answer."""
    return (
        _engines_use_all_ranks(setting)
        and holds_an_answer(setting, machine)
        and memory(setting, machine).peak <= machine.usable
    )


def _engines_use_all_ranks(setting: Setting) -> bool:
    return setting.ranks % setting.sampler.tensor_parallel == 0


def holds_an_answer(setting: Setting, machine: Machine) -> bool:
    """Whether vLLM has room for the keys and values of the longest answer. Several answers can wait for room."""
    room = vllm_cache(setting, machine) if setting.sampler.name == "vllm" else None
    return room is None or room >= sequence_bytes(setting)


def advice(setting: Setting, machine: Machine, more_gpus: bool = True) -> tuple[Change, ...] | None:
    """The cheapest changes with which the run fits; () if it already fits, None if no combination is enough.

    vLLM is only advised with room for all answers to a question at once: with less it would be too slow.
    """
    # The costliest option varies slowest, so it is changed last; each option changes as little as is needed.
    for values in product(*([None, *lever] for lever in reversed(_levers(setting, more_gpus)))):
        changes = tuple(change for change in reversed(values) if change is not None)
        changed = applied(setting, changes)
        if changed.sampler != setting.sampler:
            sampler = _with_cache(changed, machine) if _engines_use_all_ranks(changed) else None
            if sampler is None:
                continue
            changes = tuple(replace(one, value=sampler) if one.field == "sampler" else one for one in changes)
        if fits(applied(setting, changes), machine):
            return changes
    return None


def applied(setting: Setting, changes: tuple[Change, ...]) -> Setting:
    """The setting with these changes."""
    return replace(setting, **{change.field: change.value for change in changes})


def _with_cache(setting: Setting, machine: Machine) -> Sampler | None:
    """vLLM with room for the answers that fit, in hundredths of a GiB; None without room for a question's answers."""
    room = vllm_cache(setting, machine)
    assert room is not None  # since there is a machine
    rows = max(setting.completions, rows_at_once(setting, machine))
    hundredths = min(-(-100 * rows * sequence_bytes(setting) // GIB), 100 * room // GIB)
    cache = int(hundredths / 100 * GIB)
    return replace(setting.sampler, cache=cache) if cache >= setting.completions * sequence_bytes(setting) else None


def _levers(setting: Setting, more_gpus: bool) -> list[list[Change]]:
    """The options from cheap to costly, each with its values from small changes to large ones."""
    levers = []
    if setting.activations == "kept":
        levers.append([Change("--training.activations", "activations", "recomputed")])
    tokens = setting.micro_batch_tokens
    least = max(setting.longest, 256)
    smaller = [tokens >> n for n in range(1, tokens.bit_length()) if tokens >> n > least]
    smaller += [least] if least < tokens else []
    levers.append([Change("--training.micro_batch_tokens", "micro_batch_tokens", size) for size in smaller])
    rows = setting.max_sequences
    fewer = [rows >> n for n in range(1, rows.bit_length()) if rows >> n >= setting.completions]
    if setting.sampler.name == "local":
        levers.append([Change("--rollout.max_sequences", "max_sequences", number) for number in fewer])
    before = setting.sampler.tensor_parallel if setting.sampler.name == "vllm" else 1
    option = "--rollout.engine.name vllm --rollout.engine.tensor_parallel"
    heads = setting.model.num_key_heads
    splits = [n for n in (1, 2, 4, 8, 16) if n >= before and heads % n == 0]
    levers.append([Change(option, "sampler", Sampler("vllm", n)) for n in splits])
    if more_gpus:
        levers.append([Change("--gpus", "ranks", setting.ranks << n) for n in range(1, 11)])
    if setting.offload == "none":
        levers.append([Change("--training.offload", "offload", "cpu")])
    return [lever for lever in levers if lever]
