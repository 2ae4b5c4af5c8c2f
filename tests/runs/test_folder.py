from __future__ import annotations

import errno
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from negaware.files import read_json_lines
from negaware.runs.folder import RunFolder

CONFIG = {"seed": 1, "objective": {"name": "nft", "epsilon": 1.0}, "betas": [0.9, 0.95], "task": "Größe"}


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "run", CONFIG)


def test_config_and_environment_are_kept(run):
    again = RunFolder.open(run.path)
    assert again.read_config() == CONFIG
    environment = again.read_environment()
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["packages"]["negaware"]
    assert environment["packages"]["torch"]
    assert environment["memory_bytes"] > 2**28
    assert environment["num_cpus"] >= 1
    assert environment["command"] == shlex.join(sys.argv)
    assert again.read_summary() is None


def test_commit_and_dirty_flag_of_the_code_are_kept(tmp_path, monkeypatch):
    """Of the checkout that tracks the code, and of no other repository around it."""
    from negaware.runs import environment

    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *arguments], check=True)

    code = tmp_path / "environment.py"
    code.write_text("1")
    git("init", "-q")
    assert environment._commit(tmp_path) is None
    git("add", ".")
    git("commit", "-qm", "one")
    first = environment._commit(tmp_path)
    assert len(first["commit"]) == 40
    assert first["dirty"] is False
    code.write_text("2")
    assert environment._commit(tmp_path) == first | {"dirty": True}


def test_metrics_come_back_with_seconds_and_null_for_what_is_not_finite(run):
    run.log(0, {"evaluation/accuracy": 0.3})
    run.log(1, {"train/loss": math.nan, "train/grad_norm": math.inf, "rollout/pass_rate": 1 / 3})
    first, second = run.read_metrics()
    assert first["step"] == 0
    assert second["seconds"] >= first["seconds"] >= 0
    assert (second["train/loss"], second["train/grad_norm"], second["rollout/pass_rate"]) == (None, None, 1 / 3)
    assert "NaN" not in run.metrics_path.read_text()


def test_answers_come_back_whatever_their_text(run):
    texts = ["two\nlines", "separators \u2028 \u0085 \x0b", "a lone \ud800 surrogate", '"quoted" \\ud800', "数", ""]
    run.write_answers(12, [{"step": 12, "answer": text, "pass_rate": math.nan} for text in texts])
    assert (run.path / "answers" / "000012.jsonl").exists()
    assert [record["answer"] for record in run.read_answers(12)] == texts
    assert run.read_answers(12)[0]["pass_rate"] is None
    assert run.read_answers(13) == []


def test_a_run_is_never_overwritten_unasked(run):
    run.log(1, {})
    with pytest.raises(ValueError, match=r"run already holds a run; --resume .* --force"):
        RunFolder.create(run.path, {})
    assert len(run.read_metrics()) == 1


def test_force_deletes_the_run_and_nothing_else(run):
    run.log(1, {})
    run.write_answers(1, [{"step": 1}])
    run.write_summary({"steps": 1})
    (run.path / "checkpoints" / "step-000001").mkdir(parents=True)
    (run.path / "notes.txt").write_text("mine")
    again = RunFolder.create(run.path, {"seed": 2}, force=True)
    assert again.read_config() == {"seed": 2}
    assert (again.read_metrics(), again.answer_steps(), again.read_summary()) == ([], [], None)
    assert not (run.path / "checkpoints").exists()
    assert (run.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, force):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "config.yaml").write_text("of something else")
    with pytest.raises(ValueError, match="not a run folder"):
        RunFolder.create(tmp_path, {}, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ValueError, match="is a file"):
        RunFolder.create(tmp_path / "thesis.tex", {}, force=force)


def test_force_follows_no_link_out_of_the_run(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    (run.path / "model").symlink_to(outside)
    RunFolder.create(run.path, {}, force=True)
    assert (outside / "precious").read_text() == "kept"
    assert not (run.path / "model").exists()


def test_an_empty_or_missing_folder_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunFolder.create(tmp_path / "empty", {}).read_metrics() == []
    assert RunFolder.create(tmp_path / "deep" / "er", {}).read_config() == {}


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"not a run folder: .*has neither or only one"):
        RunFolder.open(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        RunFolder.open(tmp_path / "missing")


def test_truncate_forgets_later_steps_and_a_torn_line(run):
    for step in range(5):
        run.log(step, {"train/loss": step / 3, "seconds": 10.0 * step, "processor_seconds": 5.0 * step})
        run.write_answers(step, [{"step": step}])
    with run.metrics_path.open("a") as file:
        file.write('{"step": 5, "train/lo')
    (run.path / "answers" / ".000005.jsonl.partial").write_text("half")
    assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]
    assert read_json_lines(run.metrics_path)[1]

    resumed = RunFolder.open(run.path)
    resumed.go_back(2)
    assert resumed.answer_steps() == [0, 1, 2]
    assert sorted(path.name for path in (run.path / "answers").iterdir()) == [f"00000{step}.jsonl" for step in range(3)]
    resumed.log(3, {"train/loss": 1.0})
    lines = RunFolder.open(run.path).read_metrics()
    assert [(line["step"], line["train/loss"]) for line in lines] == [(0, 0.0), (1, 1 / 3), (2, 2 / 3), (3, 1.0)]
    assert 20.0 <= lines[3]["seconds"] < 25.0, "the clock goes on from the last step that counts"
    assert 10.0 <= lines[3]["processor_seconds"] < 15.0


def test_a_broken_line_in_the_middle_is_named(run):
    run.metrics_path.write_text('{"step": 0}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        run.read_metrics()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_the_previous_content_survives(run, monkeypatch, code):
    run.log(1, {"train/loss": 1.0})
    run.write_answers(1, [{"step": 1}])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    # By then the bytes are in the file: what was half written has to go again.
    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: run.log(2, {"train/loss": 0.5}),
        lambda: run.write_answers(1, [{"step": 1, "answer": "new"}]),
        lambda: run.write_summary({"steps": 2}),
        lambda: run.go_back(0),
    ):
        with pytest.raises(OSError, match=r"no space left .*--resume.*/run/") as caught:
            write()
        assert caught.value.errno == code
        assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_a_kill_leaves_whole_lines_and_whole_files(tmp_path):
    """A process that logs and replaces as fast as it can is killed; what it leaves opens and resumes."""
    code = (
        "import itertools, sys; from negaware.runs.folder import RunFolder\n"
        "run = RunFolder.create(sys.argv[1], {})\n"
        "for step in itertools.count():\n"
        "    run.log(step, {'train/loss': 0.5}); run.write_answers(0, [{'step': step, 'answer': 'x' * 5000}] * 20)\n"
        "    print(step, flush=True)\n"
    )
    path = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    while int(child.stdout.readline()) < 20:
        pass
    time.sleep(0.013)
    child.kill()
    printed = child.communicate()[0].split()
    run = RunFolder.open(path)
    steps = [line["step"] for line in run.read_metrics()]
    assert steps == list(range(len(steps)))
    assert len(steps) > int((printed or ["20"])[-1])
    assert len(run.read_answers(0)) == 20
    run.go_back(10)
    assert len(run.path.joinpath("metrics.jsonl").read_text().splitlines()) == 11
    assert json.loads(run.path.joinpath("environment.json").read_text())


@pytest.mark.parametrize("text", ["model: [", 5000 * "[", "a: &a [*a]", "- model", "3"])
def test_a_broken_config_is_named(tmp_path: Path, text: str) -> None:
    run = RunFolder.create(tmp_path / "run", {"model": "m"})
    (run.path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml (can't be read|holds no fields).*correct it by hand"):
        run.read_config()


@pytest.mark.parametrize("text", [100_000 * "[", "[]", "{"])
def test_broken_json_is_named(tmp_path: Path, text: str) -> None:
    run = RunFolder.create(tmp_path / "run", {"model": "m"})
    for name, read in (("environment.json", run.read_environment), ("summary.json", run.read_summary)):
        (run.path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"run/{name} (is not JSON|holds no JSON object)"):
            read()
    run.metrics_path.write_text(f"{text}\n{{}}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: "):
        run.read_metrics()


@pytest.mark.parametrize("then", ["moved", "deleted"])
def test_a_folder_that_is_gone_takes_nothing_more(tmp_path: Path, then: str) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    with run.locked():
        run.log(1, {})
        run.path.rename(tmp_path / "away") if then == "moved" else shutil.rmtree(run.path)
        writes = (
            lambda: run.log(2, {}),
            lambda: run.write_answers(2, []),
            lambda: run.write_summary({}),
            lambda: run.write_config({}),
        )
        for write in writes:
            with pytest.raises(
                ValueError, match=r"run was moved or deleted while the run went on \(it is now .*\), so "
            ):
                write()
        assert not run.path.exists()


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(ValueError, match="another process is training in"), folder.locked():
        pass
    with folder.locked():
        assert folder.path.is_dir()


@pytest.mark.parametrize(("name", "read"), [("summary", "read_summary"), ("environment", "read_environment")])
def test_a_broken_json_file_is_named(tmp_path: Path, name: str, read: str) -> None:
    run = RunFolder.create(tmp_path / "run", {"model": "m"})
    (run.path / f"{name}.json").write_text("")
    with pytest.raises(ValueError, match=rf"{name}\.json is not JSON"):
        getattr(run, read)()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            ValueError, match=r"run\.folder .*file/run can't be made \(Not a directory\); choose another path"
        ),
        RunFolder(tmp_path / "file/run").locked(),
    ):
        pass


def test_what_a_kill_left_in_the_moment_of_its_making_is_no_obstacle(tmp_path, monkeypatch):
    folder = tmp_path / "run"

    class Killed(BaseException):
        pass

    def killed(self, config):
        raise Killed

    monkeypatch.setattr(RunFolder, "write_config", killed)
    with pytest.raises(Killed):
        RunFolder.create(folder, {})
    monkeypatch.undo()
    assert [path.name for path in folder.iterdir()] == ["environment.json"]
    assert RunFolder.is_empty(folder)
    run = RunFolder.create(folder, {"steps": 1})
    assert run.read_config() == {"steps": 1}
    assert not RunFolder.is_empty(folder)
    (tmp_path / "environment.json").write_text("{}")
    assert not RunFolder.is_empty(tmp_path)  # somebody's, with more in it
