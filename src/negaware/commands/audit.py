"""`negaware audit`."""

from __future__ import annotations

import argparse

from negaware.commands.interrupted import imports
from negaware.commands.shared import TASK_HELP, add_data_dir


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "audit",
        help="check that a task's gold answers pass its own verifier",
        epilog="The exit code is 1 if a gold answer fails.",
    )
    parser.add_argument("task", metavar="TASK", help=TASK_HELP)
    add_data_dir(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with imports(options):
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        from negaware.tasks.audit import audit_task
        from negaware.tasks.load import load_task
        from negaware.tasks.options import parse_task
    task = load_task(parse_task(options.task), options.data_dir)
    console = Console(stderr=True)
    columns = *Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            line = progress.add_task("gold answers", total=len(task.problems))
            result = audit_task(task, lambda number: progress.advance(line, number))
    finally:
        task.verifier.close()
    for failure in result.failures:
        print(f"{failure.problem.id}: {failure.why}")
    for problem in result.textual:
        print(f"{problem.id}: the gold answer {problem.answer!r} has no value; only the same spelling passes")
    for problem in result.unread:
        print(f"{problem.id}: the gold answer {problem.answer!r} could not be read in time; is the machine busy?")
    for group in result.conflicts:
        answers = ", ".join(f"{problem.id} {problem.answer!r}" for problem in group)
        print(f"the same question with different answers: {answers}")
    unread = f"{len(result.unread):,} not read in time, " if result.unread else ""
    print(
        f"{task.name}: {result.num_passing:,} of {result.num_problems:,} gold answers pass their own verifier "
        f"({len(result.failures):,} fail, {len(result.textual):,} only by spelling, "
        f"{unread}{result.num_repeats:,} repeated questions, {len(result.conflicts):,} in conflict)"
    )
    return 1 if result.failures else 0
