"""Prints the plan of a run: on this machine for `negaware train CONFIG --dry-run`, on GPUs for `negaware plan`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from negaware.config import Config, ConfigError, load_config
from negaware.models.load import pick_device
from negaware.planning.advice import advice, applied, fits, holds_an_answer
from negaware.planning.cost import Seconds, Work
from negaware.planning.lengths import Lengths, read_lengths
from negaware.planning.memory import Memory, memory, sequence_bytes, vllm_cache
from negaware.planning.setting import GIB, Machine, Setting, sampler_of, setting_of
from negaware.planning.staleness import Pace, carried, in_turn, overlapped

WIDTH = 116


def print_plan(config: Config) -> None:
    """Prints the resolved config as YAML and the plan of a step. ValueError if the model's config can't be read."""
    print(yaml.safe_dump(config.resolved(), sort_keys=False), end="")
    num_ranks = sampler_of(config).tensor_parallel
    setting = setting_of(config, num_ranks, pick_device(config.device))
    print("\n# One step")
    for line in [*rollout_lines(config), *training_lines(setting)]:
        print(f"#   {line}")
    processes = f" of each of {num_ranks} processes, the fewest that share an engine" if num_ranks > 1 else ""
    print(f"\n# Memory (GiB){processes}")
    held = memory(setting)
    lines = [*held.always.items()]
    lines += [(f"{moment}: {name}", size) for moment, parts in held.moments.items() for name, size in parts.items()]
    for name, size in [*lines, ("together at the worst moment", held.peak)]:
        print(f"#   {size / GIB:8.2f}  {name}")
    if setting.device == "cpu" and setting.activations == "recomputed":
        print("#   The process takes up to half as much again: holes in the C library's heap (docs/scaling.md).")


def plan_command(
    path: Path, overrides: Sequence[str], gpus: int, machine: Machine, ahead: tuple[int, str] | None = None
) -> int:
    """Prints the plan of a config on `gpus` of these machines; returns 0 if it fits, 1 if not. Raises ValueError.

    `ahead`: a staleness and the lengths of answers (as `read_lengths` takes them), for a table of sampling ahead.
    """
    config = load_config(path, overrides)
    setting = setting_of(config, gpus, "cuda")
    if setting.sampler.name == "vllm_server":
        raise ConfigError(
            "rollout.engine is vllm_server, whose GPUs aren't known here; plan with --rollout.engine vllm."
        )
    if gpus % setting.sampler.tensor_parallel:
        raise ConfigError(
            f"--gpus is {gpus}, but each engine takes {setting.sampler.tensor_parallel} "
            "(rollout.engine.tensor_parallel); give a multiple of that."
        )
    lengths = None if ahead is None else read_lengths(ahead[1], setting.answer_tokens)
    print(f"{path}: {config.model.name} on {gpus} GPUs of {machine.memory / GIB:g} GiB\n")
    held, console = memory(setting, machine), Console(width=WIDTH)
    console.print(_memory_table(held, machine))
    print()
    for line in [*rollout_lines(config), *training_lines(setting), *time_lines(setting, machine)]:
        print(line)
    print()
    if ahead and lengths:
        is_recomputed = config.training.old_logprobs == "recomputed"
        print_staleness(setting, is_recomputed, machine, lengths, ahead[0], console)
    print(verdict(setting, machine, held))
    return 0 if fits(setting, machine) else 1


def rollout_lines(config: Config) -> list[str]:
    """Lines on questions, answers and optimizer steps, if every answer has the greatest length allowed."""
    rollout, training = config.rollout, config.training
    sequences = rollout.questions * rollout.completions
    tokens = sequences * rollout.max_new_tokens
    return [
        f"{rollout.questions} questions × {rollout.completions} answers = {sequences:,} sequences, "
        f"at most {rollout.max_new_tokens:,} tokens each: {tokens:,} answer tokens",
        f"at most {rollout.question_budget:,} questions asked to find {rollout.questions} informative ones"
        if rollout.filter == "informative"
        else f"{rollout.questions} questions asked, all of them trained on",
        f"{training.optimizer_steps} optimizer steps of {rollout.questions / training.optimizer_steps:g} questions "
        f"and at most {tokens // training.optimizer_steps:,} answer tokens",
        f"{config.run.steps:,} steps: {config.run.steps * training.optimizer_steps:,} optimizer steps, "
        f"{config.run.steps * sequences:,} answers trained on",
    ]


def training_lines(setting: Setting) -> list[str]:
    """Lines on the rows and micro-batches of an optimizer step, and on its operations."""
    cut = Work(setting)
    counted = "" if setting.prompt_tokens else ", questions not counted"
    answers = "1 answer" if cut.answers_a_row == 1 else f"{cut.answers_a_row} answers"
    balance = f", {cut.balance(setting.ranks):.0%} of them with a row to train on" if setting.ranks > 1 else ""
    return [
        f"a row holds {answers}, {cut.row_tokens:,} tokens{counted}: {cut.rows:,} rows an optimizer step, "
        f"{cut.micro_batches:,} micro-batches a rank{balance}",
        f"{setting.optimizer_steps * cut.rows * cut.row(setting):.2e} operations a step in training",
    ]


def time_lines(setting: Setting, machine: Machine) -> list[str]:
    """Lines on the seconds of a step and of the run, and on their assumptions."""
    spent = Seconds(setting, machine)
    parts: Mapping[str, float] = {
        "sampling": spent.sampling,
        "training": spent.training,
        "waiting for the network": spent.communication,
        "new weights to the sampler": spent.handover,
    }
    shown = ", ".join(f"{name} {_duration(value)}" for name, value in parts.items() if value)
    total = setting.steps * spent.step
    is_offloaded = setting.offload == "cpu" and setting.ranks > 1
    return [
        f"time a step: {shown}; together {_duration(spent.step)}",
        f"time of {setting.steps:,} steps: {_duration(total)}, {total * setting.ranks / 3600:,.0f} GPU hours, if every "
        "question asked is informative and every answer as long as it may be; evaluation not counted",
        *(["moving offloaded weights, and the CPU's optimizer: not counted"] if is_offloaded else []),
        f"assumed of a GPU: {machine.efficiency:.0%} of {machine.operations / 1e12:,.0f} TFLOP/s and of "
        f"{machine.bandwidth / 1e12:g} TB/s, {machine.network / 1e9:g} GB/s to the others",
    ]


def print_staleness(
    setting: Setting, is_recomputed: bool, machine: Machine, lengths: Lengths, staleness: int, console: Console
) -> None:
    """Prints a table of a step in turn, carried and overlapped, and its assumptions.

    `is_recomputed`: one of the setting's extra passes is for π_old; with several policies π_old is recorded instead.
    """
    recorded = replace(setting, extra_passes=setting.extra_passes - is_recomputed)
    paces = {
        "in turn": in_turn(setting, machine, lengths),
        "carried": carried(recorded, machine, lengths, staleness),
        "overlapped": overlapped(recorded, machine, lengths, staleness),
    }
    title = f"A step with answers of {lengths.mean:,.0f} tokens on average, staleness at most {staleness}"
    console.print(_staleness_table(title, setting.ranks, paces))
    print()
    for line in [
        *(["overlapped: no split of the GPUs into servers and ranks fits"] if paces["overlapped"] is None else []),
        "in turn: a batch is sampled by one policy, then trained; carried: answers go on across updates, sampling and "
        "training take turns; overlapped: vLLM servers sample on other GPUs while ranks train, the split of the GPUs "
        "with the shortest step",
        f"assumed: answers' lengths are independent, every rank trains on answers of the mean length, "
        f"{setting.max_sequences} answers at once an engine at most, questions that fill it, all of them informative; "
        "carried keys and values are computed again after each update",
        "not known: ranks that wait because rows differ in length, the verifier's time, and the real times of a GPU: "
        "no figure here was measured on one",
    ]:
        print(line)
    print()


def _staleness_table(title: str, gpus: int, paces: Mapping[str, Pace | None]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("")
    for name in paces:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[Pace], str]] = {
        "seconds a step": lambda pace: f"{pace.seconds:,.1f}",
        "  of them sampling": lambda pace: f"{pace.sampling:,.1f}",
        "  of them training": lambda pace: f"{pace.training:,.1f}",
        "answer tokens a second a GPU": lambda pace: f"{pace.tokens_a_second:,.0f}",
        "mean staleness, updates": lambda pace: f"{pace.staleness:.2f}",
        "answers at once an engine, mean": lambda pace: f"{pace.rows:,.0f}",
        "GPUs that sample": lambda pace: f"{gpus - pace.trainers or gpus}",
        "GPUs that train": lambda pace: f"{pace.trainers}",
    }
    for name, shown in rows.items():
        table.add_row(name, *("–" if pace is None else shown(pace) for pace in paces.values()))
    return table


def verdict(setting: Setting, machine: Machine, held: Memory) -> str:
    """Whether the run fits; if not, which moments don't, and what to change."""
    room = f"{machine.usable / GIB:.1f} GiB (nine tenths of a GPU)"
    if fits(setting, machine):
        host = f"; {_on_the_host(held)}" if held.on_the_host else ""
        return f"It fits: {held.peak / GIB:.1f} of {room}{host}."
    over = [f"{name} takes {held.total(name) / GIB:.1f}" for name in held.moments if held.total(name) > machine.usable]
    reasons = [f"{', '.join(over)} of {room}"] if over else []
    if not holds_an_answer(setting, machine):
        left = max(0, vllm_cache(setting, machine) or 0)
        reasons.append(
            f"vLLM has {left / GIB:.2f} GiB for keys and values, and the longest answer takes "
            f"{sequence_bytes(setting) / GIB:.2f}"
        )
    changes = advice(setting, machine)
    if changes is None:
        change = "No option is enough: take GPUs with more memory, or lower rollout.max_new_tokens."
    else:
        change = f"It fits with {' '.join(map(str, changes))}"
        here = advice(setting, machine, more_gpus=False) if any(one.field == "ranks" for one in changes) else None
        if here:  # with offload, which costs more than GPUs
            host = _on_the_host(memory(applied(setting, here), machine))
            change += f"\nOr on {setting.ranks} GPUs, more slowly, with {' '.join(map(str, here))} ({host})"
    return f"It doesn't fit: {'; '.join(reasons)}.\n{change}"


def _on_the_host(held: Memory) -> str:
    return f"{held.on_the_host / GIB:.1f} GiB of the CPU's memory for each"


def _memory_table(held: Memory, machine: Machine) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="Memory of a GPU", title_justify="left")
    table.add_column("purpose")
    table.add_column("GiB", justify="right")
    sections = {"always": (held.always, sum(held.always.values()))}
    sections |= {f"while {moment}": (parts, held.total(moment)) for moment, parts in held.moments.items()}
    for title, (parts, total) in sections.items():
        for name, size in parts.items():
            table.add_row(f"  {name}", f"{size / GIB:.2f}")
        over = " (too much)" if total > machine.usable else ""
        table.add_row(f"[bold]{title}, together{over}", f"[bold]{total / GIB:.2f}", end_section=True)
    return table


def _duration(value: float) -> str:
    """Seconds in a readable unit."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if value >= 2 * size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.1f} seconds"
