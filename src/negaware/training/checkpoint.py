"""Checkpoints: written aside, checked, swapped in; the last few kept. A broken one never replaces a good one.

One is a folder: `tensors/` (torch.distributed.checkpoint), `state.json` (everything else), and `manifest.json` with the
size and checksum of every file, written last. What the state means is the caller's business. Reading one runs no code
that stands in it: the state is JSON, and of Python's pickles only a few classes are let through.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata

from negaware.files import replace_file, sync
from negaware.libraries import reason
from negaware.ranks import ALONE, Ranks

_MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", "tensors"
_METADATA = "torch.distributed.checkpoint.metadata"
_HARMLESS = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *(("torch.distributed.checkpoint.filesystem", "_StorageInfo"), ("torch", "Size")),
    *(("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")),
}
"""Module and name of all that torch writes about a checkpoint's tensors. BytesStorageMetadata isn't among it: what such
an entry stands for would be unpickled by torch, whatever it is."""


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read, in one sentence."""


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
    ranks: Ranks = ALONE,
) -> Path:
    """Writes `folder/step-000012` and deletes all but the newest `keep`. Raises CheckpointError on a full disk, say.

    Of several ranks each writes its shards into the same folder, and the first one the rest.
    """
    final = _path(folder, step)
    aside = folder / f".{final.name}.partial"
    try:
        if ranks.is_first:
            shutil.rmtree(aside, ignore_errors=True)
        ranks.meet()
        with _alone():
            writer = dcp.FileSystemWriter(aside / _TENSORS)
            dcp.save(dict(tensors), storage_writer=writer, no_dist=ranks.size == 1)
        if ranks.is_first:
            replace_file(aside / _STATE, json.dumps(state))
        ranks.meet()
        checksums = _checksums(aside, ranks)
        if not ranks.is_first:
            return final
        for file in (aside / _TENSORS).iterdir():  # torch syncs them before their last bytes are written
            sync(file)
        replace_file(aside / _MANIFEST, json.dumps(checksums))
        if final.exists():
            shutil.rmtree(final)
        os.replace(aside, final)
        sync(folder)
    except (Exception, CheckpointException) as error:  # torch wraps what its threads meet, in a BaseException
        ranks.require_alive(error)
        shutil.rmtree(aside, ignore_errors=True)
        kept = list_checkpoints(folder)
        raise CheckpointError(
            f"The checkpoint {final} can't be written ({_cause(error)}); "
            f"{f'the last good one is {kept[-1].name}' if kept else 'there is none yet'}. "
            "Make room or mend what is in the way, then go on with --resume."
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first. Another name, such as step-000016-good, is none of ours."""
    steps = {_step(path.name): path for path in folder.glob("step-*") if path.is_dir()}
    return [path for step, path in sorted((step, path) for step, path in steps.items() if step is not None)]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint, None if there is none; what a killed writer left half-written is deleted."""
    for leftover in folder.glob(".step-*.partial"):
        if _step(leftover.name[1:].removesuffix(".partial")) is not None:
            shutil.rmtree(leftover, ignore_errors=True)
    return next(reversed(list_checkpoints(folder)), None)


def read_state(path: Path, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The state of a checkpoint whose every file is as it was written. Raises CheckpointError otherwise."""
    try:
        expected, found = json.loads((path / _MANIFEST).read_bytes()), _checksums(path, ranks)
        different = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
        if different:
            raise _unreadable(path, f"{different[0]} is {'not what was written' if different[0] in found else 'gone'}")
        state: dict[str, Any] = json.loads((path / _STATE).read_bytes())
    except FileNotFoundError as error:
        raise _unreadable(path, f"{Path(error.filename).name} is gone") from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError, TypeError) as error:
        raise _unreadable(path, f"{_MANIFEST} is not what was written") from error
    return state


def load_tensors(folder: Path, step: int, tensors: Mapping[str, Tensor], ranks: Ranks = ALONE) -> None:
    """Reads the checkpoint of `step` into these tensors, in place. Raises CheckpointError if they don't match.

    However many ranks wrote it, each reads what its own shards need.
    """
    path = _path(folder, step)
    reader = _Reader(path / _TENSORS, _read_metadata(path))
    try:
        with _alone():
            dcp.load(dict(tensors), storage_reader=reader, no_dist=ranks.size == 1)
    except (Exception, CheckpointException) as error:
        ranks.require_alive(error)
        raise _unreadable(path, _cause(error)) from error


class _Reader(dcp.FileSystemReader):
    """torch's reader, which would unpickle whatever is said to be metadata (tensors it reads as such)."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._metadata = metadata

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


def _read_metadata(path: Path) -> Metadata:
    """What torch has written about the tensors of the checkpoint. CheckpointError for anything else."""
    try:
        with (path / _TENSORS / ".metadata").open("rb") as file:
            metadata = _HarmlessUnpickler(file).load()
    except Exception as error:  # a garbled pickle may raise any of them
        raise _unreadable(path, reason(error)) from error
    if not isinstance(metadata, Metadata):
        raise _unreadable(path, f"{_TENSORS}/.metadata holds no metadata")
    return metadata


class _HarmlessUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        is_dtype = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if not is_dtype and (module_name, global_name) not in _HARMLESS:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"{_TENSORS}/.metadata names {name}, which isn't ours: it could run code")
        return super().find_class(module_name, global_name)


def random_state() -> dict[str, Any]:
    """The state of every random number generator of this process, ready for JSON."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = cast(tuple[Any, ...], numpy.random.get_state())
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    states = state["cuda"][: torch.cuda.device_count()]  # it may be resumed where there are fewer devices
    torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in states])


def _checksums(path: Path, ranks: Ranks) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below `path` but the manifest; each rank reads a part of them.

    OSError on all ranks if one of them can't read its part.
    """
    # One list for all: over a network, the folder may look older from another machine.
    names = ranks.from_first(lambda: sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()))
    found: dict[str, list[int]] = {}
    failed: OSError | None = None
    try:
        for name in [name for name in names if name != _MANIFEST][ranks.rank :: ranks.size]:
            checksum = 0
            with (path / name).open("rb") as stream:
                while block := stream.read(1 << 24):
                    checksum = zlib.crc32(block, checksum)
            found[name] = [(path / name).stat().st_size, checksum]
    except OSError as error:
        failed = error
    parts = ranks.gather((found, failed))
    for _, failure in parts:
        if failure is not None:
            raise failure
    return {name: facts for part, _ in parts for name, facts in part.items()}


def _cause(error: BaseException) -> str:
    """The operating system's word where one stands behind the error, else the error's first line."""
    text = f"{error} {error.__context__}"
    if (
        "No space left" in text
        or "enforce fail" in text
        or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    ):
        return "no space left on the device"
    if isinstance(error, CheckpointException):  # its own first line names nothing but ranks
        return next((reason(failure) for failure, _ in error.failures.values()), reason(error))
    return reason(error)


@contextmanager
def _alone() -> Iterator[None]:
    """torch warns that it saves for one process only, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _step(name: str) -> int | None:
    """The step of a checkpoint's name, None if it isn't exactly the name that `_path` gives."""
    digits = name.removeprefix("step-")
    return int(digits) if digits.isdecimal() and _path(Path(), int(digits)).name == name else None


def _unreadable(path: Path, why: str) -> CheckpointError:
    others = list_checkpoints(path.parent)
    before = [other.name for other in (others[: others.index(path)] if path in others else others)]
    return CheckpointError(
        f"The checkpoint {path} can't be read ({why}); delete that folder and run again with --resume, which then goes "
        f"on from {before[-1] if before else 'the beginning'}."
    )
