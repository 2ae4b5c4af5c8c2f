"""What a rank does in step with the others when a checkpoint is written and read; test_ranks.py has real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from negaware.ranks import ALONE, RankLostError, Ranks
from negaware.training import checkpoint


def test_a_rank_waits_for_the_folder_and_for_the_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    save = checkpoint.dcp.save

    class SecondOfTwo(Ranks):
        """The first one says what this one says, at once."""

        def meet(self) -> None:
            done.append("meet")

        def gather(self, value: Any) -> list[Any]:
            return [value, value]

        def from_first(self, make: Any) -> Any:
            return make()

    def noted(*args: Any, no_dist: bool, **options: Any) -> None:
        done.append(f"saved, {'alone' if no_dist else 'together'}")
        save(*args, no_dist=True, **options)

    monkeypatch.setattr(checkpoint.dcp, "save", noted)
    tensors = {"master/weight": torch.ones(3)}
    path = checkpoint.save_checkpoint(tmp_path, 1, tensors, {}, 2, SecondOfTwo(1, 2))
    assert path == tmp_path / "step-000001"
    assert done == ["meet", "saved, together", "meet"]
    assert not list(tmp_path.glob("step-*"))  # the first rank swaps it in
    done.clear()
    checkpoint.save_checkpoint(tmp_path, 1, tensors, {}, 2)
    assert done == ["saved, alone"]
    assert json.loads((tmp_path / "step-000001" / checkpoint._STATE).read_text()) == {}


def test_each_rank_reads_its_part_of_the_files_in_one_order(tmp_path: Path) -> None:
    class SecondOfTwo(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value]

        def from_first(self, make: Any) -> Any:
            return make()

    names = [f"{number:02}" for number in range(40)]
    for name in names:
        (tmp_path / name).write_text(name)
    assert list(checkpoint._checksums(tmp_path, ALONE)) == names
    assert list(checkpoint._checksums(tmp_path, SecondOfTwo(1, 2))) == names[1::2]


def test_what_another_rank_could_not_read_is_an_error_here(tmp_path: Path) -> None:
    class FirstOfTwo(Ranks):
        def gather(self, value: Any) -> list[Any]:
            return [value, ({}, OSError("the other's disk is gone"))]

        def from_first(self, make: Any) -> Any:
            return make()

    with pytest.raises(OSError, match="the other's disk"):
        checkpoint._checksums(tmp_path, FirstOfTwo(0, 2))


@pytest.mark.parametrize(("ranks", "alone"), [(ALONE, True), (Ranks(1, 2), False)])
def test_ranks_read_together(ranks: Ranks, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, found = checkpoint.dcp.load, []

    def noted(*args: Any, no_dist: bool, **options: Any) -> None:
        found.append(no_dist)
        load(*args, no_dist=True, **options)

    tensors = {"master/weight": torch.arange(3.0)}
    checkpoint.save_checkpoint(tmp_path, 1, tensors, {}, 2)
    monkeypatch.setattr(checkpoint.dcp, "load", noted)
    read = {"master/weight": torch.zeros(3)}
    checkpoint.load_tensors(tmp_path, 1, read, ranks)
    assert found == [alone]
    assert read["master/weight"].tolist() == [0, 1, 2]


def test_a_lost_rank_is_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class LeftAlone(Ranks):
        def require_alive(self, error: BaseException) -> None:
            raise RankLostError("rank 1 has died")

    checkpoint.save_checkpoint(tmp_path, 1, {"master/weight": torch.ones(3)}, {}, 2)
    with pytest.raises(RankLostError):
        checkpoint.load_tensors(tmp_path, 1, {"master/weight": torch.ones(4)}, LeftAlone())
    monkeypatch.setattr(checkpoint, "replace_file", lambda *args: 1 / 0)
    with pytest.raises(RankLostError):
        checkpoint.save_checkpoint(tmp_path, 2, {"master/weight": torch.ones(3)}, {}, 2, LeftAlone())
