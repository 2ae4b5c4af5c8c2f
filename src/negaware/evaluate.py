"""`negaware evaluate MODEL --task NAME --samples K`: a finished model's figures on a task.

It joins what the command needs (a policy, the local engine, a task) and prints; the figures come from `evaluate`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from negaware.evaluation.evaluate import EvaluationResult, evaluate, write_results
from negaware.evaluation.metrics import Estimate
from negaware.evaluation.options import EvaluationSampling
from negaware.models.load import COMPUTE_DTYPES, load_policy, pick_device
from negaware.rollout.local import LocalEngine
from negaware.tasks.load import load_task
from negaware.tasks.options import parse_task
from negaware.tasks.task import Task


def evaluate_model(options: argparse.Namespace) -> None:
    """Evaluates, writes the per-problem results, and prints the table and the same figures as JSON.

    ValueError, with the results written, if no answer could be judged.
    """
    temperature = options.temperature if options.temperature is not None else float(options.samples > 1)
    if temperature == 0 and options.samples > 1:
        raise ValueError(
            f"--temperature is 0 and --samples is {options.samples}: all of them would be the same answer; "
            "take one sample or a temperature above 0."
        )
    sampling = EvaluationSampling(
        max_new_tokens=options.max_new_tokens,
        temperature=temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        completions=options.samples,
    )
    task = load_task(parse_task(options.task), options.data_dir)
    try:
        output = options.output or _default_output(task.name, options)
        if output.is_dir() or not os.access(output.absolute().parent, os.W_OK):
            raise ValueError(f"{output} can't be written: -o takes a file in a folder that exists and can be written.")
        task = replace(task, problems=task.problems[: options.num_problems])
        result = _run(options, task, sampling)
    finally:
        task.verifier.close()
    if result.is_judged:
        Console().print(results_table(result))
        print(json.dumps(result.summary()))
    write_results(result, output)
    print(f"per-problem results  {output}")
    result.require_judged(f"Mend the judge, then start again with -o {output}")
    if result.unjudged:
        print(result.unjudged)


def _default_output(task_name: str, options: argparse.Namespace) -> Path:
    """TASK-MODEL-K.jsonl, where MODEL has two names, since every run's model folder is called `model`.

    ValueError if it exists: that takes hours to sample again.
    """
    model = Path(options.model)
    names = model.resolve().parts[1:] if model.is_dir() else model.parts
    output = Path(f"{task_name}-{'-'.join(names[-2:])}-{options.samples}.jsonl")
    if output.exists():
        raise ValueError(f"{output} exists already; give -o FILE to write elsewhere, or to replace it.")
    return output


def _run(options: argparse.Namespace, task: Task, sampling: EvaluationSampling) -> EvaluationResult:
    torch.manual_seed(options.seed)
    policy = load_policy(options.model, COMPUTE_DTYPES[options.dtype], pick_device(options.device))
    encode, decode = policy.codec.encode, policy.codec.decode
    engine, params = LocalEngine(policy.model), sampling.params(policy.codec.stop_token_ids, policy.max_tokens)
    with _token_counter(len(task.problems) * sampling.completions) as count:
        return evaluate(engine, task, encode, decode, params, sampling.completions, options.seed, count)


@contextmanager
def _token_counter(num_answers: int) -> Iterator[Callable[[int], None]]:
    """A line on the terminal's standard error that says how many tokens were sampled so far, and for how long."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} tokens"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        line = progress.add_task(f"sampling {num_answers:,} answers", total=None)
        yield lambda tokens: progress.advance(line, tokens)


def results_table(result: EvaluationResult) -> Table:
    """avg@k, pass@k and maj@k with their intervals, and what was cut off or couldn't be verified."""
    table = Table(title=f"{result.task}: {len(result.results):,} problems × {result.num_completions} answers")
    table.add_column("measure")
    table.add_column("value [95% interval]", justify="right")
    k = result.num_completions
    table.add_row(f"avg@{k}", _shown(result.avg_at_k))
    for samples, estimate in result.pass_at.items():
        table.add_row(f"pass@{samples}", _shown(estimate))
    table.add_row(f"maj@{k}", _shown(result.maj_at_k))
    table.add_row("truncated answers", f"{result.num_truncated:,}")
    table.add_row("unverifiable answers", f"{result.num_unverifiable:,}")
    if result.num_short_of_room:
        table.add_row("problems whose answers had less room", f"{result.num_short_of_room:,}")
    if result.num_without_room:
        table.add_row("problems not asked: no room, wrong", f"{result.num_without_room:,}")
    return table


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} [{estimate.low:.1%}, {estimate.high:.1%}]"
