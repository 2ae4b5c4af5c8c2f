"""A judge that takes its time, without using the processor: as one that asks a service would."""

import time
from typing import Any


def half_a_second(text: str, problem: Any) -> bool:
    """Right, if it is an even number of characters."""
    time.sleep(0.5)
    return len(text) % 2 == 0


def at_once(text: str, problem: Any) -> bool:
    """The same, without the wait."""
    return len(text) % 2 == 0
