"""What to change where a run doesn't fit: the least of some changes, in the order of what they cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from negaware.planning.memory import memory
from negaware.planning.setting import Machine, Sampler, Setting


@dataclass(frozen=True, slots=True)
class Change:
    """One field of the setting, and the option that sets it."""

    option: str
    field: str
    value: Any

    def __str__(self) -> str:
        value = self.value.tensor_parallel if isinstance(self.value, Sampler) else self.value
        return f"{self.option} {value}"


def fits(setting: Setting, machine: Machine) -> bool:
    """Whether every moment fits what is usable of a GPU, and engines fill the ranks."""
    return setting.ranks % setting.sampler.tensor_parallel == 0 and memory(setting, machine).peak <= machine.usable


def advice(setting: Setting, machine: Machine) -> tuple[Change, ...] | None:
    """The mildest changes with which the run fits; empty if it does, None if nothing tried is enough."""
    # The first of all combinations: the dearest lever is the last to be touched, and each no further than it must be.
    for values in product(*([None, *lever] for lever in reversed(_levers(setting)))):
        changes = tuple(change for change in reversed(values) if change is not None)
        if fits(replace(setting, **{change.field: change.value for change in changes}), machine):
            return changes
    return None


def _levers(setting: Setting) -> list[list[Change]]:
    """Mild to dear; each with its values, mild to strong."""
    levers = []
    if setting.activations == "kept":
        levers.append([Change("--training.activations", "activations", "recomputed")])
    tokens = setting.micro_batch_tokens
    smaller = [tokens >> n for n in range(1, tokens.bit_length()) if tokens >> n >= max(setting.longest, 256)]
    levers.append([Change("--training.micro_batch_tokens", "micro_batch_tokens", size) for size in smaller])
    rows = setting.max_sequences
    fewer = [rows >> n for n in range(1, rows.bit_length()) if rows >> n >= setting.completions]
    if setting.sampler.name == "local":
        levers.append([Change("--rollout.max_sequences", "max_sequences", number) for number in fewer])
    before = setting.sampler.tensor_parallel if setting.sampler.name == "vllm" else 1
    option = "--rollout.engine.name vllm --rollout.engine.tensor_parallel"
    heads = setting.model.num_key_heads
    again = setting.sampler.name == "local" or setting.sampler.takes_half  # with a cache of its own choice, then
    splits = [n for n in (1, 2, 4, 8, 16) if n > before or (again and n == before)]
    levers.append([Change(option, "sampler", Sampler("vllm", n)) for n in splits if heads % n == 0])
    levers.append([Change("--gpus", "ranks", setting.ranks << n) for n in range(1, 11)])
    if setting.offload == "none":
        levers.append([Change("--training.offload", "offload", "cpu")])
    return [lever for lever in levers if lever]
