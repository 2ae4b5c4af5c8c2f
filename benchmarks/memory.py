"""Peak resident memory of a stretch of code, by the kernel's own counter (Linux)."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")


def _status_megabytes(name: str) -> float:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"{_STATUS} has no line {name}; memory can be measured on Linux only.")


class PeakMemory:
    """`with PeakMemory() as memory: …`, then `memory.measured()`: peak, and growth over what was resident before."""

    def __enter__(self) -> PeakMemory:
        self.forget()
        self.before = _status_megabytes("VmRSS")
        return self

    def forget(self) -> None:
        """Earlier peaks don't count, nor what earlier work freed."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def __exit__(self, *exception: object) -> None:
        self.peak = _status_megabytes("VmHWM")

    @property
    def growth(self) -> int:
        """Bytes above the size before."""
        return int((self.peak - self.before) * 2**20)

    def measured(self) -> dict[str, float]:
        """Megabytes: the highest resident size, and how far above the size before."""
        return {"peak_mb": self.peak, "growth_mb": self.peak - self.before}


def memory_and_time(work: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """Does the work twice: watching its memory, from a trimmed heap; and on the clock, in memory that is there.

    A run takes its memory from the system once, a benchmark that trims the heap would at every call.
    """
    with PeakMemory() as memory:
        work()
    start = time.perf_counter()
    result = work()
    return result, {"seconds": time.perf_counter() - start} | memory.measured()
