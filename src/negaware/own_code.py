"""A function of the user's, `module:function`: a file loaded from its place and from nowhere else.

No other module sees that place: a `copy.py` beside it is never taken for the library's. The file itself may import what
lies beside it, unless a library has that name. What the function is for, a judge or a loss, isn't known here.
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
    """What users' functions of a kind are for, in the words of a complaint about one: field, noun, an example."""

    field: str
    noun: str
    example: str


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """The function `function` of `module`, a file in `folder`. It is pickled by that place, and loaded in a worker."""

    folder: str
    module: str
    function: str
    purpose: Purpose

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What the function returns."""
        return self.load()(*arguments, **options)

    def load(self) -> Callable[..., Any]:
        """Imports it. ValueError where that fails, or where there is no such function."""
        loaded: Callable[..., Any] = _function(self.folder, self.module, self.function, self.purpose.field)
        return loaded


def find_function(name: str, folders: Sequence[Path], purpose: Purpose) -> OwnFunction:
    """The function that `module:function` names, from the first of the folders that has such a module; it is imported.

    ValueError where there is none, or where it is no function.
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
            own = OwnFunction(str(folder), module, function, purpose)
            own.load()
            return own
    raise ValueError(
        f"{purpose.field} {name!r}: there is no {'/'.join(parts)}.py in {' or '.join(map(str, places))}; "
        f"{purpose.noun} of your own lies in the config's folder or in that where negaware is started"
    )


@cache
def _function(folder: str, module_name: str, name: str, field: str) -> Any:
    whole = f"{module_name}:{name}"
    try:
        module = importlib.import_module(f"{_package(folder)}.{module_name}")
    except (Exception, SystemExit) as error:  # whatever a user's own module may raise
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
    """A package, made here, whose modules are the files of a folder: Python then looks for them there alone."""
    name = f"own_code_in_{hashlib.blake2b(os.fsencode(folder), digest_size=8).hexdigest()}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package
        sys.meta_path.append(_Beside(name, folder))  # last: what is installed comes first
    importlib.invalidate_caches()  # the file may be younger than Python's list of the folder
    return name


class _Beside(MetaPathFinder):
    """Finds a folder's modules for the users' files in it, and for the modules so found: for no other importer."""

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
    """The top-level package of the code that is importing: the nearest that isn't Python's own import system."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("importlib", "_frozen_importlib", "_frozen_importlib_external"):
            return package
        frame = frame.f_back
    return ""
