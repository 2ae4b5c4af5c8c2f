"""How a task is named on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

TASK_HELP = (
    "gsm8k:test, math500, arithmetic:test, reasoning_gym:NAME, problems.jsonl, owner/name of a hub data set …, or "
    "written out as in a config: '{kind: benchmark, name: math500, verifier: \"my_rules:is_right\"}'"
)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    parser.add_argument("--data-dir", type=Path, help="a folder of local files that stand in for the hub's named sets")
