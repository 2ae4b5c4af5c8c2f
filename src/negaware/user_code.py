"""Loads a function that the user names as `module:function`, a judge or a loss, from a file in a given folder.

Only the user's files can import from that folder, so a `copy.py` in it never replaces the library's for other modules.
They can import what lies beside them, unless an installed library has that name.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a user's function is for, as error messages say it."""

    field: str
    noun: str
    example: str


@dataclass(frozen=True, slots=True)
class UserFunction:
    """The function `function` of `module`, a file in `folder`. Pickling keeps these names; a worker loads the file."""

    folder: str
    module: str
    function: str
    purpose: Purpose

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the function."""
        return self.load()(*arguments, **options)

    def load(self) -> Callable[..., Any]:
        """The function itself. ValueError if its module can't be imported or has no such function."""
        loaded: Callable[..., Any] = _function(self.folder, self.module, self.function, self.purpose.field)
        return loaded


def find_function(name: str, folders: Sequence[Path], purpose: Purpose) -> UserFunction:
    """The function that `module:function` names, loaded from the first of the folders that has the module.

    ValueError if there is none, or if it is no function.
    """
    module, _, function = name.partition(":")
    parts = module.split(".")
    if not all(part.isidentifier() for part in [*parts, function]):
        example = f"{purpose.example} for {purpose.example.partition(':')[0]}.py"
        raise ValueError(f"{purpose.field} is {name!r}; write module:function, such as {example}")
    places = list(dict.fromkeys(folder.resolve() for folder in folders))
    for folder in places:
        path = folder.joinpath(*parts)
        if path.with_name(f"{path.name}.py").is_file() or (path / "__init__.py").is_file():
            found = UserFunction(str(folder), module, function, purpose)
            found.load()
            return found
    raise ValueError(
        f"{purpose.field} {name!r}: there is no {'/'.join(parts)}.py in {' or '.join(map(str, places))}; "
        f"{purpose.noun} of your own must be in the config's folder or where negaware is started"
    )


@cache
def _function(folder: str, module_name: str, name: str, field: str) -> Any:
    whole = f"{module_name}:{name}"
    try:
        module = importlib.import_module(f"{_package(folder)}.{module_name}")
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise ValueError(
            f"{field} {whole!r}: module {module_name!r} can't be imported from {folder} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        raise ValueError(f"{field} {whole!r}: module {module_name!r} has no function {name!r}")
    if not callable(function) or getattr(function, "__qualname__", None) != name:
        raise ValueError(f"{field} {whole!r}: {name!r} must be a function defined with `def` in a module")
    return function


def _package(folder: str) -> str:
    """The name of a package made here, whose modules are the files of a folder: Python looks for them only there."""
    name = f"user_code_in_{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package
        sys.meta_path.append(_FolderFinder(name, folder))  # last: installed libraries come first
    importlib.invalidate_caches()  # the file may be newer than Python's list of the folder
    return name


class _FolderFinder(MetaPathFinder):
    """Finds a folder's modules for the user's files in it and for the modules that those import, for no other code."""

    def __init__(self, package: str, folder: str) -> None:
        self.folder, self.importers = folder, {package}

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        if path is not None or _importer(sys._getframe(1)) not in self.importers:
            return None
        found = PathFinder.find_spec(fullname, [self.folder])
        if found is not None:
            self.importers.add(fullname)
        return found


def _importer(frame: FrameType | None) -> str:
    """The top-level package of the code that imports: the first frame outside of Python's import system."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("importlib", "_frozen_importlib", "_frozen_importlib_external"):
            return package
        frame = frame.f_back
    return ""
