"""What a checkpoint does on the disk, and what it says and restores where machines differ."""

from __future__ import annotations

import errno
import os
import pickle
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from test_checkpoint import names, some_tensors

from negaware.training import checkpoint
from negaware.training.checkpoint import (
    CheckpointError,
    load_tensors,
    newest_checkpoint,
    random_state,
    read_state,
    save_checkpoint,
    set_random_state,
)


def test_all_is_on_the_disk_before_it_is_swapped_in_and_the_swap_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses its power at any moment has the old checkpoint or the new one, whole."""
    done: list[int | str] = []
    sizes: dict[int, int] = {}
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        done.append(os.fstat(descriptor).st_ino)
        sizes[os.fstat(descriptor).st_ino] = os.fstat(descriptor).st_size
        real_sync(descriptor)

    def replace(source: Any, target: Any) -> None:
        if Path(target).name == "step-000003":
            done.append("swapped")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    path = save_checkpoint(tmp_path, 3, some_tensors(1), {"step": 3}, keep=1)
    files = {file.stat().st_ino: file.name for file in path.rglob("*") if file.is_file()}
    place = done.index("swapped")
    assert {files[number] for number in done[:place] if number in files} == set(files.values())
    assert all(sizes[file.stat().st_ino] == file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert {"state.json", "manifest.json", ".metadata"} < set(files.values())
    assert tmp_path.stat().st_ino in done[place + 1 :]


def test_a_broken_one_names_the_newest_before_it(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_checkpoint(tmp_path, step, some_tensors(step), {}, keep=4)
    (tmp_path / "step-000003/state.json").write_text("{}x")
    with pytest.raises(CheckpointError, match=r"state.json is not what was written.*goes on from step-000002"):
        read_state(tmp_path / "step-000003")


@pytest.mark.parametrize("text", [100_000 * "[", "[1]", "{"])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    path = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    (path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"can't be read \(manifest.json is not what was written\); delete"):
        read_state(path)


def test_what_the_system_says_is_told_in_its_words(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    (path / "manifest.json").unlink()
    (path / "manifest.json").mkdir()
    with pytest.raises(CheckpointError, match=r"can't be read \(Is a directory\); delete"):
        read_state(path)


def test_an_error_without_the_systems_words_is_told_in_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("the network is gone")

    path = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    monkeypatch.setattr("negaware.training.checkpoint.zlib.crc32", fail)
    with pytest.raises(CheckpointError, match=r"can't be read \(the network is gone\)"):
        read_state(path)


def test_of_several_broken_files_the_first_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    files = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    files.remove("manifest.json")
    (path / files[0]).unlink()
    for name in [*files[1:], *map(str, range(500, 540))]:
        (path / name).write_bytes(b"something else")
    with pytest.raises(CheckpointError) as caught:
        read_state(path)
    assert "(500 is not what was written)" in str(caught.value)
    for number in range(500, 540):
        (path / str(number)).unlink()
    with pytest.raises(CheckpointError, match=rf"\({files[0]} is gone\)"):
        read_state(path)


def test_the_last_good_one_is_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, some_tensors(step), {}, keep=3)
    monkeypatch.setattr("negaware.training.checkpoint.replace_file", lambda *arguments: 1 / 0)
    with pytest.raises(CheckpointError, match="the last good one is step-000003"):
        save_checkpoint(tmp_path, 4, some_tensors(4), {}, keep=3)


@pytest.mark.parametrize(
    "said", ["[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0", "No space left"]
)
def test_torchs_word_for_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr("negaware.training.checkpoint.dcp.save", full)
    with pytest.raises(CheckpointError, match=r"can't be written \(no space left on the device\); there is none yet"):
        save_checkpoint(tmp_path, 2, some_tensors(2), {}, keep=1)


class Calls:
    """Calls a harmless function when it is unpickled; others of the same name's kind aren't harmless."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, (0,)


@pytest.mark.parametrize(("function", "name"), [(torch.is_tensor, "torch.is_tensor"), (numpy.float32, "numpy.float32")])
def test_of_torchs_own_names_only_dtypes_are_read(tmp_path: Path, function: Any, name: str) -> None:
    path = save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    file = path / "tensors/.metadata"
    metadata = pickle.loads(file.read_bytes())
    metadata.planner_data = Calls(function)
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=f"names {name}, which isn't ours"):
        load_tensors(tmp_path, 1, some_tensors(2))


@pytest.mark.parametrize("cause", [None, OSError(errno.ENOSPC, "No space left on device")])
def test_a_full_disk_is_told_by_its_number_and_behind_another_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: OSError | None
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        try:
            raise cause or OSError(errno.ENOSPC, "Kein Platz mehr")
        except OSError:
            if cause is None:
                raise
            raise RuntimeError("unexpected position")  # noqa: B904

    monkeypatch.setattr("negaware.training.checkpoint.dcp.save", full)
    with pytest.raises(CheckpointError, match=r"can't be written \(no space left on the device\)"):
        save_checkpoint(tmp_path, 2, some_tensors(2), {}, keep=1)


def test_only_the_warning_that_is_known_is_held_back() -> None:
    @checkpoint._alone()
    def warn() -> None:
        warnings.warn("torch.distributed is disabled, unavailable or uninitialized", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    with pytest.warns(UserWarning, match="another") as found:
        warn()
    assert len(found) == 1


def test_no_file_stays_open(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    before = len(os.listdir("/proc/self/fd"))
    for step in (2, 3):
        save_checkpoint(tmp_path, step, some_tensors(step), {}, keep=1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_leftovers_of_any_kind_stop_nothing(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, some_tensors(1), {}, keep=1)
    (tmp_path / ".step-000002.partial").write_text("a file, where a folder would be")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000001"
    assert names(tmp_path) == ["step-000001"]


def test_checksums_are_those_of_whole_files(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"large": torch.arange(5 << 20, dtype=torch.int32)}, {}, keep=1)
    content = (path / "tensors/__0_0.distcp").read_bytes()
    assert len(content) > 1 << 24  # more than is read at once
    assert f"[{len(content)}, {zlib.crc32(content)}]" in (path / "manifest.json").read_text()


@pytest.mark.parametrize(("num_devices", "restored"), [(0, []), (1, [[1]]), (4, [[1], [2]])])
def test_random_states_of_gpus_are_restored_where_there_are_gpus_and_states(
    monkeypatch: pytest.MonkeyPatch, num_devices: int, restored: list[list[int]]
) -> None:
    found: list[torch.Tensor] = []
    state = random_state() | {"cuda": [[1], [2]]}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", found.extend)
    set_random_state(state)
    assert [one.tolist() for one in found] == restored
    assert {one.dtype for one in found} <= {torch.uint8}


def test_random_states_of_gpus_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.cuda.is_available() or random_state()["cuda"] == []
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([1, 2], dtype=torch.uint8)])
    assert random_state()["cuda"] == [[1, 2]]


def test_a_checkpoint_moved_elsewhere_and_linked_to_stops_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    save_checkpoint(folder, 1, some_tensors(1), {}, keep=1).rename(tmp_path / "kept")
    (folder / "step-000001").symlink_to(tmp_path / "kept")  # such a link can't be deleted as a folder
    save_checkpoint(folder, 2, some_tensors(2), {}, keep=1)
    assert read_state(folder / "step-000002") == {}
    assert (tmp_path / "kept" / "state.json").exists()
