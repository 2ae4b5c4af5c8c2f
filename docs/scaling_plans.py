"""Runs the commands that docs/scaling.md shows and puts what they print below them: `python docs/scaling_plans.py`."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path

from negaware.cli import main

PAGE = Path(__file__).with_name("scaling.md")
COMMAND = re.compile(r"(```\n\$ negaware (plan [^\n]+)\n)(.*?)(```)", flags=re.DOTALL)


def with_outputs(page: str) -> str:
    """The page with its commands' present output; to be called in the repository's folder."""
    return COMMAND.sub(lambda found: found[1] + _output(found[2].split()) + found[4], page)


def _output(arguments: list[str]) -> str:
    with redirect_stdout(io.StringIO()) as printed:
        main(arguments)
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return "\n".join(line for line in lines if line) + "\n"


if __name__ == "__main__":
    os.chdir(PAGE.parents[1])
    PAGE.write_text(with_outputs(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
