"""Checkpoints hold what was put in, replace nothing before they are whole, and say what is wrong with them."""

from __future__ import annotations

import errno
import io
import json
import pickle
import random
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from negaware.training import checkpoint
from negaware.training.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_tensors,
    newest_checkpoint,
    random_state,
    read_state,
    save_checkpoint,
    set_random_state,
)
from tiny_run import contents


def some_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "master/weight": torch.randn(5, 3, generator=generator),
        "master/bias": torch.randn(3, generator=generator, dtype=torch.float64),
        "step": torch.tensor(float(seed)),
    }


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    saved, state = some_tensors(1), {"step": 12, "before": None, "question": "½ \u2028", "logprobs": [-0.1, 1e-300]}
    path = save_checkpoint(tmp_path, 12, saved, state, keep=2)
    assert path == tmp_path / "step-000012" == newest_checkpoint(tmp_path)
    assert read_state(path) == state
    loaded = some_tensors(2)
    targets = dict(loaded)
    load_tensors(tmp_path, 12, loaded)
    for name, tensor in saved.items():
        assert loaded[name] is targets[name], "read into the very tensors"
        assert torch.equal(loaded[name], tensor)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 100, 101):
        save_checkpoint(tmp_path, step, some_tensors(step), {"step": step}, keep=2)
    assert names(tmp_path) == ["step-000100", "step-000101"]
    save_checkpoint(tmp_path, 102, some_tensors(0), {}, keep=1)
    assert names(tmp_path) == ["step-000102"]
    assert newest_checkpoint(tmp_path / "nothing") is None


def test_steps_are_numbers_and_only_what_was_written_here_is_deleted(tmp_path: Path) -> None:
    """A million comes after 999,999, and a copy under another name is somebody's."""
    copies = ("step-000016-good", "step-16", "step-0000016", "step-000016.old", ".step-000016-good.partial")
    for name in copies:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "step-000017").write_text("no folder")
    for step in (999_998, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, some_tensors(step), {"step": step}, keep=2)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-1000000"
    assert names(tmp_path) == ["step-999999", "step-1000000"]
    assert {path.name for path in tmp_path.iterdir()} == {"step-999999", "step-1000000", "step-000017", *copies}
    (tmp_path / "step-1000000" / "state.json").unlink()
    with pytest.raises(CheckpointError, match="goes on from step-999999"):
        read_state(tmp_path / "step-1000000")


def test_a_step_written_again_replaces_itself(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_checkpoint(tmp_path, 3, some_tensors(seed), {"seed": seed}, keep=2)
    assert read_state(tmp_path / "step-000003") == {"seed": 2}
    loaded = some_tensors(0)
    load_tensors(tmp_path, 3, loaded)
    assert torch.equal(loaded["master/weight"], some_tensors(2)["master/weight"])


def test_leftovers_are_cleared(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=2)
    leftover = tmp_path / ".step-000002.partial"
    shutil.copytree(tmp_path / "step-000001", leftover)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000001"
    assert not leftover.exists()


@pytest.mark.parametrize("place", ["dcp.save", "replace_file", "zlib.crc32", "os.replace"])
def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    save_checkpoint(tmp_path, 1, some_tensors(1), {"step": 1}, keep=1)
    before = contents(tmp_path)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, place, full) if "." not in place else monkeypatch.setattr(
        f"negaware.training.checkpoint.{place}", full
    )
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tmp_path, 2, some_tensors(2), {"step": 2}, keep=1)
    assert str(caught.value) == (
        f"The checkpoint {tmp_path / 'step-000002'} can't be written (no space left on the device); the last good one "
        "is step-000001. Make room or mend what is in the way, then go on with --resume."
    )
    assert contents(tmp_path) == before


def test_a_first_checkpoint_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"Not a directory.*there is none yet"):
        save_checkpoint(tmp_path / "checkpoints", 2, some_tensors(2), {}, keep=1)


def cut(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    file = path / "tensors/__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        pytest.param(cut("tensors/__0_0.distcp"), "tensors/__0_0.distcp is not what was written", id="cut tensors"),
        pytest.param(flip_a_bit, "tensors/__0_0.distcp is not what was written", id="a flipped bit"),
        pytest.param(cut("tensors/.metadata"), "tensors/.metadata is not what was written", id="cut metadata"),
        pytest.param(
            lambda path: (path / "state.json").write_bytes(b"\xff{"), "state.json is not what was written", id="state"
        ),
        pytest.param(lambda path: (path / "state.json").unlink(), "state.json is gone", id="no state"),
        pytest.param(lambda path: shutil.rmtree(path / "tensors"), "tensors/.metadata is gone", id="no tensors"),
        pytest.param(lambda path: (path / "manifest.json").unlink(), "manifest.json is gone", id="no manifest"),
        pytest.param(
            lambda path: (path / "manifest.json").write_bytes(b"\xff"),
            "manifest.json is not what was written",
            id="manifest",
        ),
        pytest.param(
            lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is not what was written", id="a list"
        ),
        pytest.param(lambda path: (path / "more").write_text(""), "more is not what was written", id="a file too many"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [[1, 2], [2]], ids=["one before", "none before"])
def test_unreadable(tmp_path: Path, damage: Callable[[Path], object], why: str, steps: list[int]) -> None:
    for step in steps:
        save_checkpoint(tmp_path, step, some_tensors(step), {"step": step}, keep=2)
    path = tmp_path / "step-000002"
    damage(path)
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    then = "step-000001" if 1 in steps else "the beginning"
    assert str(caught.value) == (
        f"The checkpoint {path} can't be read ({why}); delete that folder and run again with --resume, which then goes "
        f"on from {then}."
    )


@pytest.mark.parametrize(
    "other",
    [{"master/weight": torch.zeros(4, 3)}, {"master/other": torch.zeros(5, 3)}],
    ids=["another shape", "another name"],
)
def test_tensors_of_another_model(tmp_path: Path, other: dict[str, Tensor]) -> None:
    save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    with pytest.raises(
        CheckpointError, match=r"can't be read \((Size mismatch .* for master/weight|Missing key .*master/other)"
    ) as caught:
        load_tensors(tmp_path, 1, other)
    assert "\n" not in str(caught.value)


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def as_bytes_of_python(path: Path, content: bytes) -> None:
    """Turns the checkpoint's tensor "step" into an entry of any Python object, for which the file holds a pickle."""
    metadata = pickle.loads((path / "tensors/.metadata").read_bytes())
    metadata.state_dict_metadata["step"] = BytesStorageMetadata()
    (path / "tensors/hostile").write_bytes(content)
    storage = next(iter(metadata.storage_data.values()))
    storage = replace(storage, relative_path="hostile", offset=0, length=len(content))
    metadata.storage_data[MetadataIndex("step")] = storage
    (path / "tensors/.metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("way", ["in the metadata", "instead of the metadata", "instead of a tensor"])
def test_a_checkpoint_runs_no_code(tmp_path: Path, way: str) -> None:
    """Whoever can write the files can write their checksums as well."""
    path, ran = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1), tmp_path / "ran"
    file = path / "tensors/.metadata"
    if way == "instead of the metadata":
        file.write_bytes(pickle.dumps(Hostile(ran)))
    elif way == "in the metadata":
        metadata = pickle.loads(file.read_bytes())
        metadata.planner_data = Hostile(ran)
        file.write_bytes(pickle.dumps(metadata))
    else:
        content = io.BytesIO()
        torch.save(Hostile(ran), content)
        as_bytes_of_python(path, content.getvalue())
    files = [one for one in path.rglob("*") if one.is_file() and one.name != "manifest.json"]
    checksums = {str(one.relative_to(path)): [one.stat().st_size, zlib.crc32(one.read_bytes())] for one in files}
    (path / "manifest.json").write_text(json.dumps(checksums))
    assert read_state(path) == {}
    with pytest.raises(CheckpointError, match=r"can't be read \(tensors/.metadata names .*it could run code\)"):
        load_tensors(tmp_path, 1, some_tensors(2))
    assert not ran.exists()


def test_metadata_that_is_none(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    (path / "tensors/.metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(CheckpointError, match=r"can't be read \(tensors/.metadata holds no metadata\)"):
        load_tensors(tmp_path, 1, some_tensors(2))


def test_random_states_of_devices_that_are_not_there_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    restored: list[list[int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", list)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: restored.extend(s.tolist() for s in states))
    set_random_state(random_state() | {"cuda": [[1, 2], [3, 4]]})
    assert restored == [[1, 2]]


def test_random_state_goes_through_json() -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.gauss(0, 1), random.random(), float(numpy.random.randn()), float(torch.randn(()))

    numpy.random.seed(3)
    draw()  # leaves half a gaussian pair behind in two of the generators
    state = json.loads(json.dumps(random_state()))
    first = draw()
    assert draw() != first
    set_random_state(state)
    assert draw() == first
