"""`negaware study`."""

from __future__ import annotations

import argparse
from pathlib import Path

from negaware.commands.interrupted import imports
from negaware.commands.shared import add_jobs


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "study",
        help="variants of a config × seeds: runs, tables, figures",
        epilog="docs/studies.md describes the file. The same command again goes on with the unfinished runs, also with "
        "new variants or seeds.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY.yaml")
    add_jobs(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with imports(options):
        from negaware.studies.study import study_command
    return study_command(options.study, options.jobs, options.dry_run)
