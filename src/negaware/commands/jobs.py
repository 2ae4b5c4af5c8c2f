"""How the runs of a study are asked for."""

from __future__ import annotations

import argparse

from negaware.arguments import positive


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Adds `--jobs` and `--dry-run`."""
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs side by side (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="print the runs and how long they may take")
