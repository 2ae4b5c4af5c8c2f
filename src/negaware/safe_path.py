"""Python processes that negaware starts import nothing from the current folder.

Otherwise a `copy.py` in that folder, beside downloaded data say, would be run instead of the library's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_NAME, _SET_BY_US = "PYTHONSAFEPATH", "set by negaware"


def keep_path_safe() -> None:
    """For every Python that this process starts from now on."""
    os.environ.setdefault(_NAME, _SET_BY_US)


@contextmanager
def safe_path() -> Iterator[None]:
    """For every Python that is started in this block."""
    before = os.environ.get(_NAME)
    keep_path_safe()
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_NAME, None)


def restore_path() -> None:
    """Restores the user's setting, for processes that a user's judge starts."""
    if os.environ.get(_NAME) == _SET_BY_US:
        del os.environ[_NAME]
