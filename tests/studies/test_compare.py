"""`negaware compare`, a study without a file: the variants that it makes, its runs, what it refuses."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from forked_command import negaware
from negaware.cli import main
from negaware.runs.folder import RunFolder
from negaware.studies import compare
from negaware.studies.folder import read_results
from negaware.studies.matrix import jobs_of
from negaware.studies.options import read_study
from negaware.studies.study import part_of_machine, study_command
from tiny_run import write_tiny_config


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other(tmp_path: Path) -> None:
    """The first diverges: what it said stands at the end, with its log. Its study's file goes on."""
    config = write_tiny_config(tmp_path, run__folder=None, run__steps=1)
    command = ("compare", config, "--vary", "training.learning_rate=1e38,1e-2", "--seeds", "3")
    ended = negaware(*command, cwd=tmp_path)
    assert ended.code == 2
    assert ended.err.startswith(
        "negaware: error: learning_rate=1e+38-seed3 failed: The loss of optimizer step 2 is nan"
    )
    log = "runs/tiny-compare/runs/learning_rate=1e+38-seed3.log"
    assert f" ({log})\nThe same command goes on with what is left.\n" in ended.err
    assert "Traceback" not in ended.err
    assert "is nan" in (tmp_path / log).read_text()
    folder = tmp_path / "runs/tiny-compare"
    assert [(run.variant, run.seed) for run in read_results(folder).runs] == [("learning_rate=0.01", 3)]
    assert not (tmp_path / "runs/tiny").exists()  # where `train` goes
    dry = negaware("study", folder / "study.yaml", "--dry-run", cwd=tmp_path)
    assert "2 runs, 1 done, 1 to do" in dry.out
    shutil.rmtree(folder / "figures")
    (folder / "figures").touch()
    ended = negaware(*command, cwd=tmp_path)
    assert "learning_rate=1e+38-seed3 failed: " in ended.err  # though the figures can't be written
    assert ended.err.splitlines()[-1].startswith("negaware: error: ")
    assert "figures" in ended.err.splitlines()[-1]


@pytest.mark.slow
def test_compare_runs_each_objective_and_seed_once(tmp_path: Path) -> None:
    """Without run.folder it has a folder of its own; its file is a study that goes on."""
    config = write_tiny_config(tmp_path, run__folder=None, run__steps=1)
    command = ["compare", str(config), "--objectives", "nft,grpo", "--seeds", "0,1"]
    ended = negaware(*command, cwd=tmp_path)
    assert ended.code == 0, ended.err
    folder = tmp_path / "runs/tiny-compare"
    results = read_results(folder)
    assert [(run.variant, run.seed) for run in results.runs] == [("nft", 0), ("nft", 1), ("grpo", 0), ("grpo", 1)]
    assert results.reference == "nft"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("results/*.json")}
    for again in (command, ["study", str(folder / "study.yaml")]):  # every run is done, so none is started anew
        ended = negaware(*again, cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert "run 1" not in ended.out
        assert before == {path: path.stat().st_mtime_ns for path in folder.glob("results/*.json")}


def study_of(monkeypatch: pytest.MonkeyPatch, config: Path, *arguments: str) -> dict[str, dict[str, object]]:
    """The variants of the study that these arguments make."""
    made: list[str] = []

    def note(study: object, text: str, *others: object) -> int:
        made.append(text)
        return 0

    monkeypatch.setattr(compare, "run_study", note)
    assert main(["compare", str(config), *arguments]) == 0
    return yaml.safe_load(made[0])["variants"]


def test_values_are_crossed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """An option that an objective doesn't have makes one variant of it, and that is said."""
    config = write_tiny_config(tmp_path)
    epsilon = ["--vary", "objective.epsilon=1,0.3"]
    assert study_of(monkeypatch, config, *epsilon, "--vary", "objective=nft,rft,grpo") == {
        "nft-epsilon=1": {"objective.epsilon": 1},
        "nft-epsilon=0.3": {"objective.epsilon": 0.3},
        "rft": {"objective": "rft"},
        "grpo": {"objective": "grpo"},
    }
    said = [line for line in capsys.readouterr().out.splitlines() if " has no " in line]  # libraries speak too
    assert said == [f"{name} has no epsilon: it has one variant for all values of epsilon." for name in ("rft", "grpo")]
    crossed = study_of(monkeypatch, config, *epsilon, "--vary", "training.learning_rate=1e-5,1e-6")
    assert crossed == {
        f"epsilon={epsilon}-learning_rate={rate}": {"objective.epsilon": epsilon, "training.learning_rate": rate}
        for epsilon in (1, 0.3)
        for rate in (1e-5, 1e-6)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objectives", "nft,grppo"], "did you mean grpo?"),
        (["--objectives", ""], "--objectives is ''"),
        ([], "compare needs --objectives or --vary, such as --objectives nft,rft."),
        (["--objectives", "nft", "--seeds", "a"], "seeds: 'a' names no seeds"),
        (["--objectives", "nft", "--seeds", "4-0"], "seeds: '4-0' names no seeds"),
        (["--objectives", "nft", "--run.seed", "3"], "--run.seed would be lost: compare takes the seeds from --seeds"),
        (["--objectives", "nft", "--objective", "rft"], "--objective would be lost: compare takes the objectives from"),
        (["--objectives", "rft", "--objective.epsilon", "0.5"], "--objective.epsilon would be lost"),
        (["--vary", "objective.epsilon"], "--vary is 'objective.epsilon'; write a field and its values"),
        (["--vary", "objective.epsilon=1,1"], "--vary objective.epsilon is '1,1'; give different values"),
        (["--vary", "training.learning_rate=1e-5,0.00001"], "give different values with commas between"),
        (["--vary", "model=./a,./b"], "which can't name a file; write a study's file and choose the names."),
        (["--vary", "objective.epsylon=1,2"], "did you mean objective.epsilon?"),
        (["--vary", "run.steps=1,2", "--run.steps", "4"], "--run.steps would be lost: --vary run.steps sets it"),
        (["--vary", "run.folder=a,b"], "run.folder can't be set"),
    ],
)
def test_compare_refuses_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], message: str
) -> None:
    assert main(["compare", str(write_tiny_config(tmp_path)), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


STUDY = "base: tiny.yaml\nvariants: {nft: }\nseeds: 0\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no fields; begin with `base: CONFIG.yaml`."),
        ("base: [", "is not YAML"),
        ("base: tiny.yaml\nseeds: 0\n", "variants is missing"),
        (STUDY + "variant: 1\n", "variant is no known field; did you mean variants?"),
        (STUDY.replace("variants", "varaints"), "varaints is no known field; did you mean variants?"),
        (STUDY.replace("tiny", "tony"), "tony.yaml can't be read: No such file or directory."),
        (STUDY.replace("nft", "../nft"), "variants: '../nft' can't name a file"),
        (STUDY.replace("{nft: }", "{a: , A: }"), "variants: two names differ in capitals alone"),
        (STUDY.replace("seeds: 0", "seeds: [0, 1, 0]"), "seeds are 0, 1, 0; give each once."),
        (STUDY.replace("seeds: 0", "seeds: 0-4000"), "'0-4000' names no seeds, or more than 1,000;"),
        (STUDY.replace("seeds: 0", "seeds: [-1]"), "seeds.0 is -1; it should be at least 0."),
        (STUDY + "reference: rft\n", "reference is 'rft'; it must be one of nft."),
        (STUDY + "margins: {greedy_accuracy: 3}\n", "margins.greedy_accuracy is 3; it should be less than 1."),
        (STUDY + "margins: {avg_at_8: 0.1}\n", "isn't measured by avg_at_8, but by greedy_accuracy and avg_at_2."),
        (STUDY.replace("nft: ", "nft: {run.seed: 3}"), "variants.nft: run.seed can't be set; a study takes the seeds"),
        (STUDY.replace("nft: ", "nft: {a: {b: 1}, a.b: 2}"), "variants.nft sets a.b twice; set it once"),
        (STUDY.replace("nft: ", "nft: {trainin.learning_rate: 3}"), "variant nft: trainin is no known field"),
        (STUDY.replace("nft: ", "nft: {objective: {loss: 'my:loss'}}"), "variant nft: objective: loss 'my:loss'"),
        (
            STUDY.replace("nft: ", "nft: , few: {evaluation.task.num_problems: 3}"),
            "nft-seed0 and few-seed0 can't be compared: their held-out problems differ (4 and 3, 'test/3' is not the "
            "same in both); give all variants the same evaluation.task.",
        ),
        (
            STUDY.replace("nft: ", "nft: , more: {evaluation.final.completions: 4}"),
            "nft-seed0 and more-seed0 can't be compared: evaluation.final.completions is 2 in the one and 4 in the",
        ),
        (STUDY.replace("nft: ", "nft: {model: ./nowhere}"), "There is no model folder './nowhere'"),
        (STUDY.replace("nft: ", "nft: {task.path: nowhere.jsonl}"), "nowhere.jsonl"),
    ],
)
def test_a_study_is_refused_before_the_first_run(tmp_path: Path, text: str, message: str) -> None:
    write_tiny_config(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        study_command(path, 1, False)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "small").exists()


def test_a_study_needs_a_folder_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither its own file, nor the folder of a run, such as one that `train` made of the same config."""
    config = write_tiny_config(tmp_path)
    (tmp_path / "bare").write_text(STUDY)
    assert main(["study", str(tmp_path / "bare")]) == 2
    assert "bare, which is a file; give the study's file the suffix .yaml" in capsys.readouterr().err
    RunFolder.create(tmp_path / "run", {})
    (tmp_path / "small.yaml").write_text(STUDY + "folder: run\n")
    for command in (["compare", str(config), "--objectives", "nft,rft"], ["study", str(tmp_path / "small.yaml")]):
        assert main(command) == 2
        assert "run is the folder of a run, so it can't be a study's folder" in capsys.readouterr().err
    assert not (tmp_path / "run/runs").exists()


def test_among_ranks_a_study_takes_no_jobs_and_its_plan_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_tiny_config(tmp_path)
    (tmp_path / "small.yaml").write_text(STUDY)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--jobs is 2, but under torchrun the runs go one after another"):
        study_command(tmp_path / "small.yaml", 2, False)
    for rank, times in ("0", 1), ("1", 0):
        monkeypatch.setenv("RANK", rank)
        assert study_command(tmp_path / "small.yaml", 1, True) == 0
        assert capsys.readouterr().out.count("1 runs, 0 done, 1 to do") == times
    assert not (tmp_path / "small").exists()


def test_a_runs_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of runs that are left; what the user has set stays."""
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {*range(9)}, raising=False)
    assert part_of_machine(0, 1, 2) == {}
    assert part_of_machine(1, 4, 0) == {"OMP_NUM_THREADS": "2"}
    assert part_of_machine(0, 20, 0) == {"OMP_NUM_THREADS": "1"}
    found = [part_of_machine(place, 3, 2)["CUDA_VISIBLE_DEVICES"] for place in range(3)]
    assert found == ["0", "1", "0"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")
    assert part_of_machine(1, 2, 2) == {"CUDA_VISIBLE_DEVICES": "7"}


def test_fields_may_be_nested_and_an_objective_is_taken_whole(tmp_path: Path) -> None:
    write_tiny_config(tmp_path, objective={"name": "nft", "epsilon": 0.25, "negative_weight": 0.5})
    (tmp_path / "s.yaml").write_text(
        "base: tiny.yaml\noverrides: {training: {learning_rate: 2e-5}, run.steps: 7}\nseeds: 3,5-6\nvariants:\n"
        "  same:\n  merged: {objective: {epsilon: 0.5}}\n  whole: {objective: {name: nft, epsilon: 0.5}}\n"
        "  own: {evaluation.seed: 9, training.learning_rate: 1e-6}\n"
    )
    jobs = jobs_of(read_study(tmp_path / "s.yaml"), tmp_path / "tiny.yaml", tmp_path / "s")
    assert [job.name for job in jobs][:5] == ["same-seed3", "merged-seed3", "whole-seed3", "own-seed3", "same-seed5"]
    assert [job.seed for job in jobs][::4] == [3, 5, 6]
    options = [(job.config["objective"]["epsilon"], job.config["objective"]["negative_weight"]) for job in jobs[:3]]
    assert options == [(0.25, 0.5), (0.5, 0.5), (0.5, 1.0)]
    assert [job.config["training"]["learning_rate"] for job in jobs[:4]] == [2e-5, 2e-5, 2e-5, 1e-6]
    assert [job.config["evaluation"]["seed"] for job in jobs[:4]] == [0, 0, 0, 9]
    assert {job.steps for job in jobs} == {7}
    assert len({job.beginning for job in jobs[:3]}) == 1
    assert len({job.beginning for job in jobs[:4]}) == 2
    for field, number in ("objective.loss", 1), ("task.path", 1), ("evaluation.task.path", 2), ("model.name", 2):
        changed = replace(jobs[0], user_files=jobs[0].user_files | {field: "0" * 16})
        assert len({jobs[0].beginning, changed.beginning}) == number  # what is trained on, and how, comes later
    assert len({job.config_hash for job in jobs}) == len(jobs)
