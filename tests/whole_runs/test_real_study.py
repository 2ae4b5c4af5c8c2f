"""`python -m negaware study` as a shell starts it: signals to it, and what becomes of the processes of its runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_real_process import assert_all_gone, members, wait_for

from forked_command import negaware_on_ranks
from negaware.studies.folder import StudyFolder, read_results
from tiny_run import write_tiny_config


def write_study(folder: Path, **changes: object) -> Path:
    """A study of two variants whose runs never end by themselves, in `folder`/study."""
    write_tiny_config(
        folder, **{"run__steps": 100_000, "run__checkpoint_every": 100_000, "training__learning_rate": 1e-9} | changes
    )
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"base": "tiny.yaml", "variants": {"nft": None, "rft": None}, "seeds": 0}))
    return path


def start(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "negaware", "study", str(path), "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def checkpoints(folder: Path) -> list[int]:
    """The step of each run's checkpoint."""
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.glob("study/runs/*/checkpoints/*"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_its_runs_end_with_a_checkpoint(tmp_path: Path, name: str) -> None:
    """Ctrl-C reaches every process of the terminal, the others the study alone."""
    process = start(write_study(tmp_path))
    for variant in ("nft", "rft"):
        wait_for(tmp_path / f"study/runs/{variant}-seed0/answers/000002.jsonl", process)
    if name == "SIGINT":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.Signals[name])
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err == "\nInterrupted. The same command goes on from the last finished step of each run.\n"
    assert out.endswith("Stopping: each run ends after its step, with a checkpoint.\n")
    assert_all_gone(process.pid)
    steps = checkpoints(tmp_path)
    assert len(steps) == 2
    assert all(step >= 2 for step in steps)


@pytest.mark.slow
def test_a_killed_study_leaves_no_run_behind(tmp_path: Path) -> None:
    """The runs notice, and write a checkpoint as if asked."""
    process = start(write_study(tmp_path))
    for variant in ("nft", "rft"):
        wait_for(tmp_path / f"study/runs/{variant}-seed0/answers/000002.jsonl", process)
    assert len(members(process.pid)) >= 3
    process.kill()
    process.communicate(timeout=300)
    assert_all_gone(process.pid)
    assert len(checkpoints(tmp_path)) == 2


@pytest.mark.slow
def test_a_second_study_in_its_folder_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    process = start(path)
    wait_for(tmp_path / "study/runs/nft-seed0/answers/000001.jsonl", process)
    with (
        pytest.raises(ValueError, match=rf"another process \({process.pid}\) is running the study in "),
        StudyFolder(tmp_path / "study").locked(),
    ):
        pass
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode == 130


@pytest.mark.slow
def test_nobody_reads_what_it_says(tmp_path: Path) -> None:
    """As in `negaware study … | head`: its runs are stopped, so all is not well."""
    process = start(write_study(tmp_path))
    assert process.stdout
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (
        2,
        "negaware: error: nobody reads the output any more. The same command goes on from the last finished step of "
        "each run.\n",
    )
    assert_all_gone(process.pid)


@pytest.mark.slow
def test_on_two_ranks(tmp_path: Path) -> None:
    """As torchrun would start it: one run after another, each on both."""
    path = write_study(tmp_path, run__steps=2, training__learning_rate=1e-2)
    with StudyFolder(tmp_path / "study").locked():
        refused, _ = negaware_on_ranks(2, "study", path)
    assert refused.code == 2
    assert "is running the study in" in refused.err
    first, second = negaware_on_ranks(2, "study", path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "run 2 of 2: rft-seed0" in first.out
    runs = read_results(tmp_path / "study").runs
    assert [(run.variant, run.metrics[-1]["step"]) for run in runs] == [("nft", 2), ("rft", 2)]
    assert runs[0].before == runs[1].before
