"""The evaluation before training, kept in a file: runs that begin with the same policy and questions need it once."""

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
    """What was found before the first step."""

    counts: dict[str, Counts]
    """Of each measure."""
    metrics: Mapping[str, float]
    """Those of step 0: the first of the evaluations on the way."""


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """A block in which no two processes are at once for the same file: the second finds what the first has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_before(path: Path) -> Before | None:
    """What is kept there; None if nothing is. ValueError if someone has broken it."""
    if not path.exists():
        return None
    try:
        return Before(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read ({error}); delete it: it is made again") from error


def before_text(before: Before) -> str:
    """What the file holds."""
    return json.dumps(asdict(before)) + "\n"
