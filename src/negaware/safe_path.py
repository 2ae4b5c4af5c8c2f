"""A Python that negaware starts imports nothing from the folder where negaware was started.

Otherwise a `copy.py` that lies there, beside downloaded data say, would be run in the place of the library's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME = "PYTHONSAFEPATH"
_SET_BY_US = "set by negaware"


def keep_path_safe() -> None:
    """From now on, of every Python that this process starts."""
    os.environ.setdefault(_NAME, _SET_BY_US)


@contextmanager
def safe_path() -> Iterator[None]:
    """For those that are started in this block."""
    before = os.environ.get(_NAME)
    keep_path_safe()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_NAME, None)


def restore_path() -> None:
    """As the user has it: what a judge starts is the judge's affair."""
    if os.environ.get(_NAME) == _SET_BY_US:
        del os.environ[_NAME]
