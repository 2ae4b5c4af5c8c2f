"""The evaluation before training: a seed of its own, and made once for runs that begin alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from negaware.config import parse_config
from negaware.evaluation.before import read_before
from negaware.loop.train import train
from tiny_run import timeless_metrics, tiny_config


def run_of(folder: Path, name: str, seed: int, evaluation_seed: int | None, kept: Path | None = None) -> Path:
    changes = {"run__steps": 1, "run__seed": seed, "evaluation__seed": evaluation_seed}
    return train(parse_config(tiny_config(folder, **changes, run__folder=str(folder / name))), before=kept)


def answers(run: Path, moment: str) -> bytes:
    return (run / f"evaluations/{moment}-avg_at_2.jsonl").read_bytes()


def test_it_has_a_seed_of_its_own_and_is_made_once(tmp_path: Path) -> None:
    kept = tmp_path / "kept/before.json"
    first = run_of(tmp_path, "first", 1, 7, kept)
    alone = run_of(tmp_path, "alone", 2, 7)
    assert answers(first, "before") == answers(alone, "before")  # another run.seed, the same evaluation.seed
    assert answers(first, "after") != answers(alone, "after")
    by_run = run_of(tmp_path, "by_run", 2, None)
    assert answers(by_run, "before") != answers(alone, "before")
    assert answers(by_run, "after") == answers(alone, "after")

    second = run_of(tmp_path, "second", 2, 7, kept)
    assert not list(second.glob("evaluations/before-*"))  # taken over, not made
    assert timeless_metrics(second) == timeless_metrics(alone)
    figures = [json.loads((run / "summary.json").read_text()) for run in (second, alone)]
    for part in ("before", "after", "change"):
        assert figures[0][part] == figures[1][part]


def test_what_is_kept_and_broken_is_named(tmp_path: Path) -> None:
    kept = tmp_path / "before.json"
    assert read_before(kept) is None
    for text in ("{", '{"counts": {}}', "[]"):
        kept.write_text(text)
        with pytest.raises(ValueError, match=r"before\.json can't be read .* delete it, and it is made again"):
            read_before(kept)
