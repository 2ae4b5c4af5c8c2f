"""Other people's libraries: which of their versions were tested, and what their errors say."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version


class UntestedVersionError(ImportError, ValueError):
    """A library is missing, or of a version that we were not tested with."""


def require_installed(tested: str, needed_by: str) -> None:
    """UntestedVersionError unless the library is installed as `tested` asks, such as "peft>=0.21,<0.22"."""
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
    """An error in one line: the first of its text, else its type's name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
