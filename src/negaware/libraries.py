"""Third-party libraries: which versions were tested, and what their errors say."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version


class UntestedVersionError(ImportError, ValueError):
    """A library is missing, or negaware was not tested with its version."""


def require_installed(tested: str, needed_by: str) -> None:
    """UntestedVersionError unless a `tested` version, such as "peft>=0.21,<0.22", is installed."""
    library = Requirement(tested).name
    try:
        found = version(library)
    except PackageNotFoundError:
        raise UntestedVersionError(
            f"{needed_by} needs the package {library}, which is not installed; run: pip install '{tested}'"
        ) from None
    require_tested(tested, found, f"the {library} that is installed")


def require_tested(tested: str, found: str, where: str) -> None:
    """UntestedVersionError unless version `found` of the library, found `where`, is one of `tested`."""
    try:
        is_tested = Requirement(tested).specifier.contains(Version(found), prereleases=True)
    except InvalidVersion:
        is_tested = False
    if not is_tested:
        raise UntestedVersionError(f"{where} is version {found}; negaware was tested with {tested}: install that.")


def reason(error: BaseException) -> str:
    """An error in one line: the first line of its text, or else the name of its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
