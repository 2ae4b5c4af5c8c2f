"""What --resume finds in a run folder that was changed in between: it is mended, or refused in one sentence."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from forked_command import Ended, Fault, negaware
from negaware.runs.folder import RunFolder
from tiny_run import contents, timeless_metrics, write_problems, write_tiny_config

LOADING = "negaware.loop.parts:load_policy"
OPTIMIZER_STEP = "negaware.training.optimizer:MasterOptimizer.step"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its finished run, and `killed`: the same run, killed in step 5 after the checkpoint of step 4."""
    folder = tmp_path_factory.mktemp("changed")
    config = write_tiny_config(folder)
    assert negaware("train", config).code == 0
    ended = negaware("train", config, "--run.folder", folder / "killed", faults=[Fault("SIGKILL", OPTIMIZER_STEP, 10)])
    assert ended.code == -9
    return folder


def resume(folder: Path, run: Path, *faults: Fault) -> Ended:
    return negaware("train", folder / "tiny.yaml", "--run.folder", run, "--resume", faults=faults)


def refused(ended: Ended) -> str:
    """The one sentence with which a command was refused."""
    assert ended.code == 2, ended
    assert ended.err.startswith("negaware: error: ")
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("negaware: error: ").rstrip("\n")


@pytest.mark.parametrize(
    "damage", ["gone", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("truncated", "garbled"))]
)
def test_metrics_are_those_of_the_checkpoint(folder: Path, tmp_path: Path, damage: str) -> None:
    run = shutil.copytree(folder / "killed", tmp_path / "run")
    metrics = run / "metrics.jsonl"
    if damage == "gone":
        metrics.unlink()
    else:
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(lines[:2]) if damage == "truncated" else "".join([lines[0], "{\n", *lines[1:]]))
    assert resume(folder, run).code == 0
    assert timeless_metrics(run) == timeless_metrics(folder / "run")


@pytest.mark.parametrize(
    ("file", "golds", "field"),
    [("train.jsonl", "012012010", "task"), ("test.jsonl", "0121", "evaluation.task")],
    ids=["training", "held-out"],
)
def test_data_that_have_changed_are_refused(folder: Path, tmp_path: Path, file: str, golds: str, field: str) -> None:
    """One gold answer is enough."""
    run = shutil.copytree(folder / "killed", tmp_path / "run")
    before, data = contents(run), folder / file
    held = data.read_text()
    try:
        write_problems(data, golds)
        sentence = refused(resume(folder, run))
    finally:
        data.write_text(held)
    assert sentence == (
        f"{run} is of other data: the problems of {field} have changed since the run began; put them back as they "
        "were, or choose another run.folder."
    )
    assert contents(run) == before


@pytest.mark.slow
def test_another_model_under_the_adapters_is_refused(folder: Path, tmp_path: Path) -> None:
    """A checkpoint holds what is trained; the rest comes from the model's files."""
    model = shutil.copytree(folder / "model", tmp_path / "model")
    command = ("train", folder / "tiny.yaml", "--model.name", model, "--model.lora.rank", 2, "--run.steps", 3)
    command = (*command, "--run.folder", tmp_path / "run", "--resume")
    assert negaware(*command, faults=[Fault("SIGINT", OPTIMIZER_STEP, 3)]).code == 130
    weights = load_file(model / "model.safetensors")
    held = (model / "model.safetensors").read_bytes()
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] += 1e-3
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    assert "other data: the weights under the adapters have changed since" in refused(negaware(*command))
    (model / "model.safetensors").write_bytes(held)
    assert negaware(*command).code == 0


def test_a_finished_run_whose_model_is_not_whole_writes_it_again(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    before = contents(run / "model")
    (run / "model" / "model.safetensors").write_bytes(before["model.safetensors"][:-100])
    assert resume(folder, run).code == 0
    assert contents(run / "model") == before
    shutil.rmtree(run / "checkpoints")
    (run / "model" / "model.safetensors").unlink()
    left = contents(run)
    assert refused(resume(folder, run)) == (
        f"The run in {run} is finished, but its model isn't whole, and there is no checkpoint to write it from; put "
        "one of them back, or begin anew with --force."
    )
    assert contents(run) == left


def test_a_garbled_file_is_met_before_anything_is_loaded_and_the_advice_holds(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "killed", tmp_path / "run")
    advice = {
        "config.yaml": "correct it by hand, or copy the config that the run was started with over it",
        "environment.json": "correct it, or write {} into it: no computation needs it",
        "summary.json": "delete it: train --resume writes it again",
    }
    for name in advice:
        (run / name).write_bytes(b'{"a": [\xff')
    for name, ending in advice.items():
        sentence = refused(resume(folder, run, Fault("SIGKILL", LOADING)))
        assert sentence.startswith(str(run / name))
        assert sentence.endswith(ending)
        if name == "environment.json":
            (run / name).write_text("{}")
        elif name == "summary.json":
            (run / name).unlink()
        else:
            shutil.copy(folder / "tiny.yaml", run / name)
    ended = resume(folder, run)
    assert (ended.code, ended.err) == (0, "")
    assert "when the run began" not in ended.out
    assert timeless_metrics(run) == timeless_metrics(folder / "run")
    assert "<html" in (run / "report.html").read_text()


def test_only_what_the_run_wrote_is_deleted_and_what_rounds_otherwise_is_told(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder / "killed", tmp_path / "run")
    users = ["answers/000005-good.jsonl", "answers/5.jsonl", "answers/\u00b2.jsonl", ".notes.partial"]
    users += ["answers/.mine.jsonl.partial", "checkpoints/step-000002-good/notes"]
    for name in users:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")
    ours = [".metrics.jsonl.partial", "answers/.000005.jsonl.partial"]
    for name in ours:
        (run / name).write_text("half")
    environment = json.loads((run / "environment.json").read_text())
    computation = environment["computation"]
    assert computation["kernels"] in ("compiled", "torch")
    assert computation["threads"] == 1, "the server of these commands has one"
    assert computation["processor"]
    (run / "environment.json").write_text(json.dumps(environment | {"computation": computation | {"threads": 64}}))
    ended = resume(folder, run)
    assert ended.code == 0
    assert "threads was 64 when the run began and is 1 now: figures may differ by rounding\n" in ended.out
    assert ended.out.count("when the run began") == 1
    assert [(run / name).read_text() for name in users] == ["mine"] * len(users)
    assert [name for name in ours if (run / name).exists()] == []


def test_a_run_folder_that_is_moved_away_is_not_made_anew(tmp_path: Path) -> None:
    """Nor is another one that stands in its place written to."""
    config = write_tiny_config(tmp_path, run__steps=100_000, training__learning_rate=1e-9)
    run, moved, ends = tmp_path / "run", tmp_path / "moved", []
    command = threading.Thread(target=lambda: ends.append(negaware("train", config)))
    command.start()
    deadline = time.monotonic() + 120
    while not (run / "checkpoints/step-000002").exists() and command.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.rename(moved)
    run.mkdir()
    command.join()
    assert refused(ends[0]) == (
        f"the run folder {run} was moved or deleted while the run went on (it is now {moved}), so nothing more is "
        "written; move it back, then go on with --resume from its last checkpoint"
    )
    assert list(run.iterdir()) == []
    steps = [line["step"] for line in RunFolder(moved).read_metrics()]
    assert steps == list(range(len(steps)))
    run.rmdir()
    moved.rename(run)
    ended = negaware("train", config, "--resume", faults=[Fault("SIGINT", OPTIMIZER_STEP, 1)])
    assert ended.code == 130
    steps = [line["step"] for line in RunFolder(run).read_metrics()]
    assert steps == list(range(len(steps)))
