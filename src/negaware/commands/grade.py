"""`negaware grade`."""

from __future__ import annotations

import argparse
from pathlib import Path

from negaware.commands.interrupted import imports


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser("grade", help='verdicts for a file of {"prediction": …, "gold": …} lines')
    parser.add_argument("file", type=Path, metavar="FILE.jsonl")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.jsonl", help="default: standard output")
    parser.add_argument("--extract", default="auto", help="auto, or methods by name: boxed,answer_is,last_number")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    with imports(options):
        from negaware.verifiers.grade import grade_command
    grade_command(options.file, options.output, options.extract)
