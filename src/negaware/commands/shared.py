"""Options that several commands have."""

from __future__ import annotations

import argparse
from pathlib import Path

from negaware.arguments import positive

TASK_HELP = (
    "gsm8k:test, math500, arithmetic:test, reasoning_gym:NAME, problems.jsonl, owner/name of a hub data set …, or "
    "written out as in a config: '{kind: benchmark, name: math500, verifier: \"my_rules:is_right\"}'"
)


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    parser.add_argument(
        "--data-dir", type=Path, help="a folder of local files that replace the named data sets of the hub"
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds `--jobs` and `--dry-run`."""
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs side by side (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and how long they may take")
