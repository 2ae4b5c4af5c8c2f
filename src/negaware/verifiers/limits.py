"""The limits of judging an answer in a worker process, for every verifier."""

from __future__ import annotations

from pydantic import Field

from negaware.validation import Options


class Limits(Options):
    """What judging an answer may cost; an answer that costs more is wrong, with the reason `timeout` or `error`."""

    seconds: float = Field(default=1.3, gt=0, le=3600)
    """Wall-clock seconds for one answer; then its worker process is killed. A judge that asks a server or runs code
    needs more."""
    memory_mb: int = Field(default=1024, ge=128)
    """MB of memory for one answer in its worker process."""
    workers: int | None = Field(default=None, ge=1, le=256)
    """Worker processes; each judges one answer at a time. By default one for each core, at most 4."""
