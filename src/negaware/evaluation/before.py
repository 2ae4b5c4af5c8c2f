"""The evaluation before training, kept in a file: runs with the same policy and questions use the same one."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from negaware.evaluation.outcome import Counts


@dataclass(frozen=True, slots=True)
class Before:
    """The results of the evaluation before the first step."""

    counts: dict[str, Counts]
    """Measure → counts."""
    metrics: Mapping[str, float]
    """The metrics of step 0, from the first evaluation during training."""


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """A block that one process at a time enters for a file, so the second finds the file that the first has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_before(path: Path) -> Before | None:
    """The evaluation in the file; None if there is no file. ValueError if it was damaged."""
    if not path.exists():
        return None
    try:
        return Before(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read ({error}); delete it, and it is made again") from error


def before_text(before: Before) -> str:
    """The text of the file."""
    return json.dumps(asdict(before)) + "\n"
