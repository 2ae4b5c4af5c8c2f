"""The folder for files that negaware can make again; it may be deleted at any time."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$NEGAWARE_CACHE`, else `$XDG_CACHE_HOME/negaware`, else `~/.cache/negaware`. RuntimeError without a home."""
    if given := os.environ.get("NEGAWARE_CACHE"):
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME", "")  # the XDG Base Directory Specification ignores a relative one
    return (Path(caches) if os.path.isabs(caches) else Path.home() / ".cache") / "negaware"
