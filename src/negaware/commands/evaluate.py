"""`negaware evaluate MODEL --task NAME --samples K`: evaluates a model on a task."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from negaware.arguments import positive
from negaware.commands.interrupted import imports
from negaware.commands.shared import TASK_HELP, add_data_dir

if TYPE_CHECKING:
    from rich.table import Table

    from negaware.evaluation.evaluate import EvaluationResult
    from negaware.tasks.options import AnyTaskOptions


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("evaluate", help="avg@k, pass@k and maj@k of a model on a task")
    parser.add_argument("model", metavar="MODEL", help="a folder, a hub name, or smollm2-135m-instruct")
    parser.add_argument("--task", required=True, help=TASK_HELP)
    parser.add_argument("--samples", type=positive, default=1, metavar="K", help="answers to each problem (default 1)")
    parser.add_argument("--temperature", type=float, help="default: 0 for one sample, 1 for more")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus mass (default 1: all tokens)")
    parser.add_argument("--top-k", type=int, default=0, help="so many most probable tokens (default 0: all)")
    parser.add_argument("--max-new-tokens", type=positive, default=2048, help="longest answer (default 2048)")
    parser.add_argument("--num-problems", type=positive, help="only the first so many problems (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampled answers (default 0)")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float32"], default="auto", help="default auto")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU if there is one")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="JSONL file of the results by problem (default: a new TASK-MODEL-K.jsonl here)",
    )
    add_data_dir(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    """Writes the results by problem, and prints the figures as a table and as JSON.

    ValueError, after the results are written, if the answers couldn't be judged.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError("negaware evaluate runs in one process; start it without torchrun.")
    temperature = options.temperature if options.temperature is not None else float(options.samples > 1)
    if temperature == 0 and options.samples > 1:
        raise ValueError(
            f"--temperature is 0 and --samples is {options.samples}: all answers to a problem would be the same; "
            "set one sample or a temperature above 0."
        )
    with imports(options):
        from rich.console import Console

        from negaware.evaluation.evaluate import write_results
        from negaware.evaluation.options import EvaluationSampling
        from negaware.files import require_no_input
        from negaware.finished_model import evaluate_on
        from negaware.tasks.load import load_task
        from negaware.tasks.options import parse_task
    sampling = EvaluationSampling(
        max_new_tokens=options.max_new_tokens,
        temperature=temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        completions=options.samples,
    )
    task_options = parse_task(options.task)
    if options.output:
        require_no_input(options.output, _inputs(options, task_options))
    task = load_task(task_options, options.data_dir)
    try:
        output = options.output or _default_output(task.name, options)
        if output.is_dir() or not os.access(output.absolute().parent, os.W_OK):
            raise ValueError(f"{output} can't be written: -o takes a file in a folder that exists and can be written.")
        task = replace(task, problems=task.problems[: options.num_problems])
        count = _token_counter(len(task.problems) * sampling.completions)
        with _reserved(output, is_new=options.output is None):
            result = evaluate_on(task, options.model, sampling, options.seed, options.dtype, options.device, count)
            write_results(result, output)  # before printing, which fails if the reader of the output has ended
    finally:
        task.verifier.close()
    if result.is_judged:
        Console().print(results_table(result))
        print(json.dumps(result.summary()))
    print(f"per-problem results  {output}")
    result.require_judged(f"Correct the judge, then start again with -o {output}")
    for sentence in filter(None, (result.unjudged, result.all_truncated)):
        print(sentence)


def _inputs(options: argparse.Namespace, task: AnyTaskOptions) -> list[Path]:
    """The local files that an evaluation reads: problems, judge, and model, whose folder may hold results too."""
    from negaware.tasks.benchmarks import file_name
    from negaware.tasks.options import BenchmarkOptions, DatasetOptions

    inputs = [path for path in Path(options.model).glob("*") if path.suffix != ".jsonl"]
    if isinstance(task, DatasetOptions):
        inputs.append(Path(task.path))
    if isinstance(task, BenchmarkOptions) and options.data_dir:
        inputs.append(options.data_dir / f"{file_name(task)}.jsonl")
    if task.verifier:
        inputs.append(Path(*task.verifier.partition(":")[0].split(".")).with_suffix(".py"))
    return inputs


def _default_output(task_name: str, options: argparse.Namespace) -> Path:
    """TASK-MODEL-K.jsonl. MODEL is the last two names of the path, since every run calls its folder `model`."""
    model = Path(options.model)
    names = model.resolve().parts[1:] if model.is_dir() else model.parts
    return Path(f"{task_name}-{'-'.join(names[-2:])}-{options.samples}.jsonl")


@contextmanager
def _reserved(output: Path, is_new: bool) -> Iterator[None]:
    """Keeps other evaluations from writing the same file, already while this one samples.

    It locks the file that `write_results` writes aside. ValueError if another evaluation holds the lock, or if the
    output must be new and exists.
    """
    from negaware.files import aside_of

    aside = aside_of(output)
    with aside.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another evaluation is writing to {output}; wait until it ends, or give -o FILE to write elsewhere."
            ) from None
        try:
            if is_new and output.exists():
                raise ValueError(f"{output} exists already; give -o FILE to write elsewhere, or to replace it.")
            if not aside.exists() or not os.path.samestat(os.fstat(file.fileno()), aside.stat()):
                raise ValueError(f"another evaluation has just written {output}; give -o FILE to write elsewhere.")
            yield
        finally:  # the file is still there if nothing was written
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), aside.stat()):
                    aside.unlink()


@contextmanager
def _token_counter(num_answers: int) -> Iterator[Callable[[int], None]]:
    """Shows on standard error, if it is a terminal, how many tokens were sampled and how long it has taken."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f} tokens"))
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal) as progress:
        line = progress.add_task(f"sampling {num_answers:,} answers", total=None)
        yield lambda tokens: progress.advance(line, tokens)


def results_table(result: EvaluationResult) -> Table:
    """The table of avg@k, pass@k and maj@k with intervals, and the numbers of truncated and unverifiable answers."""
    from rich.table import Table
    from rich.text import Text

    number, k = len(result.results), result.num_completions
    title = f"{result.task}: {number:,} problem{'s' * (number > 1)} × {k} answer{'s' * (k > 1)}"
    caution = result.avg_at_k.caution
    table = Table(title=title, caption=caution and Text(caution), caption_justify="left")
    table.add_column("measure")
    table.add_column("value [95% interval]", justify="right")
    for name, estimate in result.estimates.items():
        shown = name.replace("_at_", "@")
        table.add_row("accuracy (avg@1, pass@1, maj@1)" if k == 1 else shown, str(estimate))
    table.add_row("truncated answers", f"{result.num_truncated:,}")
    table.add_row("unverifiable answers", f"{result.num_unverifiable:,}")
    if result.num_short_of_room:
        table.add_row("problems whose answers had less room", f"{result.num_short_of_room:,}")
    if result.num_without_room:
        table.add_row("problems not asked: no room, wrong", f"{result.num_without_room:,}")
    return table
