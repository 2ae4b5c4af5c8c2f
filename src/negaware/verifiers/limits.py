"""What can be set about judging an answer in a worker process, whatever judges it. It knows no verifier."""

from __future__ import annotations

from pydantic import Field

from negaware.validation import Options


class Limits(Options):
    """What judging an answer may cost; one that takes more is wrong, with `timeout` or `error` as its reason."""

    seconds: float = Field(default=1.3, gt=0, le=3600)
    """Seconds one answer may take, by the clock; then its worker process is killed. A judge that asks a server or runs
    code needs more."""
    memory_mb: int = Field(default=1024, ge=128)
    """MB that judging an answer may take in its worker process."""
    workers: int | None = Field(default=None, ge=1, le=256)
    """Worker processes, each of which judges an answer at a time. By default one a core, at most 4."""
