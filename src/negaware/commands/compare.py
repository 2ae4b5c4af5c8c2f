"""`negaware compare`."""

from __future__ import annotations

import argparse
from pathlib import Path

from negaware.commands.interrupted import imports
from negaware.commands.shared import add_jobs


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's parser."""
    parser = commands.add_parser(
        "compare",
        help="a study without a file: variants of a config × seeds",
        epilog="All files go to runs/<config name>-compare. The same command again goes on with the unfinished runs. "
        "Fields of the config can be given as for train.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument("--objectives", help="such as nft,rft,my_losses:my_loss")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="FIELD=A,B",
        help="values of a field; with several fields: all combinations",
    )
    parser.add_argument("--seeds", default="0", help="such as 0,1,2 or 0-4 (default 0)")
    add_jobs(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with imports(options):
        from negaware.studies.compare import compare_command
    return compare_command(options)
