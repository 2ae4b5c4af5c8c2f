"""Checkpoints: written aside, checked, swapped in; the last few kept. A broken one never replaces a good one.

One is a folder: `tensors/` (torch.distributed.checkpoint), `state.json` (everything else), and `manifest.json` with the
size and checksum of every file, written last. What the state means is the caller's business.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

_MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", "tensors"


class CheckpointError(ValueError):
    """A checkpoint that can't be written or read, in one sentence."""


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int
) -> Path:
    """Writes `folder/step-000012` and deletes all but the newest `keep`. Raises CheckpointError on a full disk, say."""
    final = folder / f"step-{step:06d}"
    aside = folder / f".{final.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        (aside / _TENSORS).mkdir(parents=True)
        writer = dcp.FileSystemWriter(aside / _TENSORS, single_file_per_rank=True, sync_files=True)
        dcp.save(dict(tensors), storage_writer=writer, no_dist=True)
        _write_durably(aside / _STATE, json.dumps(state))
        _write_durably(aside / _MANIFEST, json.dumps(_checksums(aside)))
        if final.exists():
            shutil.rmtree(final)
        os.replace(aside, final)
        _sync_folder(folder)
    except Exception as error:  # torch wraps what its writer threads meet in exceptions of its own
        shutil.rmtree(aside, ignore_errors=True)
        kept = [path.name for path in list_checkpoints(folder)]
        raise CheckpointError(
            f"The checkpoint {final} can't be written ({_cause(error)}); "
            + (f"the last good one is {kept[-1]}. " if kept else "there is none yet. ")
            + "Free some space or choose another run.folder, then go on with --resume."
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def read_state(path: Path) -> dict[str, Any]:
    """The state of a checkpoint whose every file is as it was written. Raises CheckpointError otherwise."""
    try:
        expected = json.loads((path / _MANIFEST).read_text())
        damaged = sorted(name for name, found in _checksums(path).items() if expected.get(name) != found)
        missing = sorted(set(expected) - set(_checksums(path)))
        if damaged or missing:
            raise CheckpointError(_unreadable(path, f"{(damaged + missing)[0]} is not what was written"))
        state: dict[str, Any] = json.loads((path / _STATE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(_unreadable(path, str(error))) from error
    return state


def load_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Reads a checkpoint's tensors into these, in place. Raises CheckpointError if they don't match."""
    try:
        dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(path / _TENSORS), no_dist=True)
    except Exception as error:
        raise CheckpointError(_unreadable(path, _cause(error))) from error


def random_state() -> dict[str, Any]:
    """The state of every random number generator of this process, ready for JSON."""
    version, internal, gauss = random.getstate()
    name, keys, *rest = numpy.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [name, keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]])


def _checksums(path: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below `path` but the manifest."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _MANIFEST:
            checksum = 0
            with file.open("rb") as stream:
                while block := stream.read(1 << 24):
                    checksum = zlib.crc32(block, checksum)
            found[str(file.relative_to(path))] = [file.stat().st_size, checksum]
    return found


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: BaseException) -> str:
    """The operating system's word where one stands behind the error, else the error's first line."""
    text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
    if "No space left" in text or "enforce fail" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return "no space left on the device"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unreadable(path: Path, why: str) -> str:
    return (
        f"The checkpoint {path} can't be read ({why}); delete that folder and run again with --resume: "
        "the one before it is taken."
    )
