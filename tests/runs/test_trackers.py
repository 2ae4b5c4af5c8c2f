from __future__ import annotations

import importlib.util
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from negaware.runs.folder import RunFolder
from negaware.runs.trackers import open_trackers

CONFIG = {"seed": 1, "objective": {"name": "nft"}}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG)


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def in_a_process(run: RunFolder, name: str, environment: dict[str, str], start_step: int = 0) -> None:
    """Logs steps 1 and 2 (or those after `start_step`) in another process: these packages keep state."""
    code = (
        "import sys; from negaware.runs.folder import RunFolder; from negaware.runs.trackers import open_trackers\n"
        "name, path, start = sys.argv[1], sys.argv[2], int(sys.argv[3])\n"
        f"(tracker,) = open_trackers([name], RunFolder.open(path), {CONFIG!r}, start_step=start)\n"
        "for step in (start + 1, start + 2):\n"
        "    tracker.log(step, {'train/loss': 0.5 / step, 'rollout/pass_rate': 0.25 * step})\n"
        "tracker.close()\n"
    )
    home = run.path.parent / "home"
    home.mkdir(exist_ok=True)
    offline = {"PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(run.path), str(start_step)],
        env=offline | environment,
        cwd=run.path.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@needs("tensorboard")
def test_tensorboard_reads_the_numbers_back(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tracker,) = open_trackers(["tensorboard"], run, CONFIG)
    for step in (1, 2, 3):
        tracker.log(step, {"train/loss": 1 / step, "rollout/pass_rate": 0.25 * step})
    tracker.close()
    (resumed,) = open_trackers(["tensorboard"], run, CONFIG, start_step=2)
    resumed.log(3, {"train/loss": 9.0})
    resumed.close()

    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    loss = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert loss == [(1, 1.0), (2, 0.5), (3, 9.0)], "a resumed run replaces what was logged after its checkpoint"
    assert [event.value for event in events.Scalars("rollout/pass_rate")] == [0.25, 0.5]


@needs("wandb")
def test_wandb_writes_the_numbers_offline(run):
    in_a_process(run, "wandb", {"WANDB_MODE": "offline"})
    (record,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    content = record.read_bytes()
    for expected in (b"train/loss", b"0.25", b"rollout/pass_rate", b"objective", b"nft"):
        assert expected in content


@needs("trackio")
def test_trackio_keeps_the_numbers_in_the_run_folder(run):
    in_a_process(run, "trackio", {})
    in_a_process(run, "trackio", {}, start_step=2)
    (database,) = (run.path / "trackio").glob("*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select step, json_extract(metrics, '$.\"train/loss\"') from metrics order by step"
        ).fetchall()
        names = connection.execute("select distinct run_name from metrics").fetchall()
    connection.close()
    assert rows == [(step, 0.5 / step) for step in (1, 2, 3, 4)]
    assert len(names) == 1, "a resumed run goes on under its name"


def test_a_missing_package_names_the_extra(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    with pytest.raises(ValueError, match=r"pip install 'negaware\[wandb\]'"):
        open_trackers(["wandb"], run, CONFIG)


def test_a_folder_called_wandb_is_not_the_package(run, monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in [name for name in sys.modules if name.split(".")[0] == "wandb"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ValueError, match=r"negaware\[wandb\]"):
        open_trackers(["wandb"], run, CONFIG)


def test_an_unknown_name_is_answered_with_those_there_are(run):
    with pytest.raises(ValueError, match=r"unknown tracker 'tensorbord'; known are tensorboard, wandb, trackio"):
        open_trackers(["tensorboard", "tensorbord"], run, CONFIG)
    assert not Path(run.path / "tensorboard").exists()


def test_no_tracker_is_no_trouble(run):
    assert open_trackers([], run, CONFIG) == []
