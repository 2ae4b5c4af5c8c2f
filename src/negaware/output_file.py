"""What a command may write to: never a file that it reads. It knows no command."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def require_no_input(output: Path, inputs: Iterable[Path]) -> None:
    """ValueError if `output` is one of the inputs, also by another name or through a link."""
    for path in inputs:
        if output.exists() and path.exists() and os.path.samefile(output, path):
            raise would_lose(output, f"{path}, which this command reads")


def would_lose(output: Path, what: str) -> ValueError:
    """The refusal to write `output` in place of what lies there."""
    return ValueError(f"-o {output} would replace {what}; give -o another file.")
