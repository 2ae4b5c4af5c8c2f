"""Host libraries change: each integration says which of their versions it was tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version


def require_version(library: str, at_least: str, below: str) -> None:
    """ImportError, saying what to install, unless the library's version is within the range tested."""
    try:
        found = Version(version(library))
    except PackageNotFoundError:
        found = None
    if found is None or not Version(at_least) <= found < Version(below):
        have = f"{library} {found} is installed" if found else f"{library} is not installed"
        raise ImportError(
            f"negaware.integrations.{library} was tested with {library} {at_least} up to below {below}, and {have}; "
            f"pip install '{library}>={at_least},<{below}'."
        )
