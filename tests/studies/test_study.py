"""A whole study on a tiny real model: killed and gone on with, added to, changed, failing, stopped."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from forked_command import Fault, negaware
from negaware.studies.check import Checked, check
from negaware.studies.folder import StudyFolder, read_results
from negaware.studies.matrix import jobs_of
from negaware.studies.options import read_study
from negaware.studies.run import perform
from negaware.studies.study import study_command
from tiny_run import TIMES, write_tiny_config

NAMES = ("nft-seed0", "nft-seed1", "rft-seed0", "rft-seed1")


def write_study(folder: Path, name: str, **changes: Any) -> Path:
    """A study of two variants, two seeds and three steps; its folder is `name`."""
    study = {
        "base": "tiny.yaml",
        "variants": {"nft": None, "rft": {"objective": "rft"}},
        "seeds": "0-1",
        "reference": "rft",
        "margins": {"greedy_accuracy": 0.25},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(study | changes, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder, run without a stop, two runs side by side; the config and its data are beside it."""
    folder = tmp_path_factory.mktemp("study")
    write_tiny_config(folder, run__steps=3)
    ended = negaware("study", write_study(folder, "straight"), "--jobs", 2)
    assert ended.code == 0, ended.err
    assert ended.out.count(" is done: accuracy at temperature 0 ") == 4
    assert "4 of 4 runs done" in ended.out
    return folder / "straight"


def timeless_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result's file without what the clock says and where the run was."""
    found = {}
    for path in sorted((folder / "results").iterdir()):
        content = json.loads(path.read_text())
        content = {name: value for name, value in content.items() if "seconds" not in name}
        del content["config"]["run"]["folder"]
        content["metrics"] = [
            {name: value for name, value in line.items() if not any(time in name for time in TIMES)}
            for line in content["metrics"]
        ]
        found[path.stem] = content
    return found


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_study_goes_on_elsewhere_and_is_added_to(straight: Path) -> None:
    """SIGKILL meets a study of one seed when its first run has ended and the other goes on: that one notices.

    Of the finished run its result alone is left, as on another machine; then a seed is added.
    """
    folder = straight.parent / "killed"
    path = write_study(straight.parent, "killed", seeds=0, keep="records")
    killed = [Fault("SIGKILL", "negaware.studies.folder:StudyFolder.write_tables", 1)]
    assert negaware("study", path, "--jobs", 2, faults=killed).code == -9
    with StudyFolder(folder).locked():  # the run that was left alone has ended by itself
        done = {place: place.stat().st_mtime_ns for place in (folder / "results").iterdir()}
    assert done
    for place in done:
        shutil.rmtree(folder / "runs" / place.stem)
    for place in folder.glob("runs/before-*"):
        place.unlink()
    assert {place.name.split(".")[0] for place in folder.glob("runs/*.files.json")} >= {place.stem for place in done}
    made = {place: place.stat().st_mtime_ns for place in folder.glob("runs/*/evaluations/before-*.jsonl")}

    write_study(straight.parent, "killed", seeds="0-1", keep="records")
    dry = negaware("study", path, "--dry-run")
    assert dry.code == 0, dry.err
    assert f"4 runs, {len(done)} done, {4 - len(done)} to do, 1 at a time\nabout " in dry.out
    assert f" for the runs to do, by the {len(done)} that are done" in dry.out
    ended = negaware("study", path)
    assert ended.code == 0, ended.err
    assert timeless_results(folder) == timeless_results(straight)
    assert {place: place.stat().st_mtime_ns for place in done} == done
    assert not any((folder / "runs" / place.stem).exists() for place in done)
    evaluated = {place: place.stat().st_mtime_ns for place in folder.glob("runs/*/evaluations/before-*.jsonl")}
    assert evaluated == made  # none is made again: it is taken from the results
    assert not list(folder.glob("runs/*/model"))


def test_what_a_run_came_to(straight: Path) -> None:
    results = read_results(straight)
    assert (results.name, results.variants, results.seeds) == ("straight", ("nft", "rft"), (0, 1))
    assert (results.reference, results.margins) == ("rft", {"greedy_accuracy": 0.25})
    assert [(run.variant, run.seed) for run in results.runs] == [("nft", 0), ("nft", 1), ("rft", 0), ("rft", 1)]
    assert results.measures() == ["greedy_accuracy", "avg_at_2"]
    for run in results.runs:
        assert run.margins == {"greedy_accuracy": 0.25}
        place = straight / "runs" / f"{run.variant}-seed{run.seed}"
        summary = json.loads((place / "summary.json").read_text())
        for moment, found in ("before", run.before), ("after", run.after):
            for measure, shares in found.items():
                assert sum(shares.values()) / 4 == pytest.approx(summary[moment][measure]["value"])
        assert run.completions == {"greedy_accuracy": 1, "avg_at_2": 2}
        assert [*run.questions.values()] == ["0+0", "1+0", "2+0", "0+1"]
        assert [line["step"] for line in run.metrics] == [0, 1, 2, 3]
        assert run.processor_seconds == summary["processor_seconds"] > 0
        assert not (place / "checkpoints").exists()
        assert (place / "model/model.safetensors").exists()


def test_the_evaluation_before_training_is_made_once(straight: Path) -> None:
    made = list(straight.glob("runs/*/evaluations/before-avg_at_2.jsonl"))
    assert len(made) == 1
    first, *others = [(run.before, {**run.metrics[0]}) for run in read_results(straight).runs]
    for before, line in others:
        assert before == first[0]
        assert line["evaluation/accuracy"] == first[1]["evaluation/accuracy"]


def test_the_tidy_tables_hold_every_figure(straight: Path) -> None:
    figures, results = rows(straight / "figures.csv"), read_results(straight)
    by_place = {
        (row["variant"], int(row["seed"]), int(row["step"]), row["measure"]): row
        for row in figures
        if row["study"] == "straight"
    }
    assert len(by_place) == len(figures)
    for run in results.runs:
        for line in run.metrics:
            found = by_place[run.variant, run.seed, line["step"], "evaluation/accuracy"] if line["step"] != 1 else None
            if found:
                expected = [line[f"evaluation/accuracy{end}"] for end in ("", "_low", "_high")]
                assert [float(found[name]) for name in ("value", "low", "high")] == expected
        spent = by_place[run.variant, run.seed, 3, "total_processor_seconds"]
        assert float(spent["value"]) == run.processor_seconds > run.metrics[-1]["processor_seconds"]
        final = by_place[run.variant, run.seed, 3, "avg_at_2"]
        assert float(final["value"]) == pytest.approx(sum(run.after["avg_at_2"].values()) / 4)
        assert 0 <= float(final["low"]) <= float(final["value"]) <= float(final["high"]) <= 1
    outcomes = rows(straight / "outcomes.csv")
    assert len(outcomes) == 4 * 2 * 2 * 4  # runs, moments, measures, problems
    one = next(row for row in outcomes if row["moment"] == "after" and row["measure"] == "avg_at_2")
    run = results.runs[0]
    assert float(one["correct_share"]) == run.after["avg_at_2"][one["problem"]]
    assert (one["question"], one["completions"]) == (run.questions[one["problem"]], "2")


def test_figures_and_a_page_with_the_sampled_answers_stand_beside_the_tables(straight: Path) -> None:
    assert {path.name for path in (straight / "figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("learning_curves", "entropy", "final_accuracy", "differences")
        for kind in ("svg", "png", "pdf")
    }
    page = (straight / "report.html").read_text(encoding="utf-8")
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(content)
    assert [(run["label"], run["seed"]) for run in data["runs"]] == [
        *(("nft-seed0", 0), ("nft-seed1", 1), ("rft-seed0", 0), ("rft-seed1", 1)),
    ]
    assert {answer["run"] for answer in data["answers"]} == {0, 1, 2, 3}
    assert "straight: 2 variants, 2 seeds</h1>" in page


def test_a_result_that_was_deleted_is_made_again_of_its_run(straight: Path) -> None:
    """Without its model too, as `keep: records` leaves it."""
    folder = straight.parent / "records"
    for part in ("results", "runs"):
        shutil.copytree(straight / part, folder / part, ignore=shutil.ignore_patterns("model"))
    shutil.copy(straight / "study.yaml", folder)
    study = read_study(write_study(straight.parent, "records", keep="records"))
    job = jobs_of(study, straight.parent / "tiny.yaml", folder)[0]
    (folder / f"results/{job.name}.json").unlink()
    perform(job, folder, straight.parent, "records")
    assert timeless_results(folder) == timeless_results(straight)
    assert not list(folder.glob("runs/*/model"))


def test_a_run_that_ended_while_the_study_waited_is_not_done_again(
    straight: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The run of a killed study holds the lock, and writes its result before it gives it back."""
    folder, name = straight.parent / "waited", "results/nft-seed0.json"
    shutil.copytree(straight / "results", folder / "results")
    (folder / name).unlink()
    path = write_study(straight.parent, "waited")
    locked = StudyFolder.locked

    @contextmanager
    def waiting(self: StudyFolder) -> Iterator[None]:
        with locked(self):
            shutil.copy(straight / name, folder / name)
            yield

    monkeypatch.setattr(StudyFolder, "locked", waiting)
    monkeypatch.setattr("negaware.studies.study.write_outputs", lambda *_: None)
    assert study_command(path, 1, False) == 0
    assert "run 1" not in capfd.readouterr().out
    assert not (folder / "runs/nft-seed0").exists()


def test_a_variant_that_has_changed_is_refused(straight: Path) -> None:
    """Before anything is run, in one sentence."""
    folder = straight.parent / "changed"
    shutil.copytree(straight / "results", folder / "results")
    path = write_study(straight.parent, "changed", variants={"nft": {"objective.epsilon": 0.5}, "rft": None})
    ended = negaware("study", path)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == (
        "negaware: error: variant nft is not what it was when its result was made with seed 0: objective.epsilon was "
        "1.0 there and is 0.5 now; set it back, give the variant a new name, or delete "
        f"{folder}/results/nft-seed0.json to have it done again.\n"
    )
    assert not (folder / "runs").exists()


@pytest.fixture
def moved(straight: Path, tmp_path: Path) -> Path:
    """The finished study's file in another folder, with its results, data and model."""
    shutil.copytree(straight / "results", tmp_path / "study" / "results")
    for name in ("tiny.yaml", "train.jsonl", "test.jsonl"):
        shutil.copy(straight.parent / name, tmp_path / name)
    shutil.copytree(straight.parent / "model", tmp_path / "model")
    for place in [tmp_path / "tiny.yaml", *tmp_path.glob("study/results/*")]:
        place.write_text(place.read_text().replace(str(straight.parent), str(tmp_path)))
    path = write_study(tmp_path, "study")
    assert len(_check(path).done) == 4
    return path


def _check(path: Path) -> Checked:
    return check(read_study(path), path.parent / "tiny.yaml", path.parent / "study")


def test_a_file_whose_content_has_changed_is_refused(moved: Path) -> None:
    """An answer put right under the same path. What isn't on this machine is taken to be the same."""
    file = moved.parent / "test.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"answer": "2"', b'"answer": "1"'))
    with pytest.raises(ValueError, match=r"made with seed 0: what is in evaluation\.task\.path has changed; "):
        _check(moved)
    file.unlink()  # as on a machine that has the results alone
    assert len(_check(moved).done) == 4


def test_a_warm_start_made_again_is_another_model_for_another_seed(moved: Path) -> None:
    """Variants are compared within a seed: one seed's begin with the same weights, another's may begin with others."""
    began = {job.name: job.beginning for job in _check(moved).jobs}
    assert len(set(began.values())) == 1
    weights = moved.parent / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    assert {job.name: job.beginning for job in _check(moved).jobs} == began
    write_study(moved.parent, "study", seeds="0-2")
    checked = _check(moved)
    assert [job.name for job in checked.waiting] == ["nft-seed2", "rft-seed2"]
    assert {job.beginning for job in checked.waiting}.isdisjoint(began.values())
    assert not list(moved.parent.glob("study/runs/before-*"))  # the finished ones began with other weights

    (moved.parent / "study" / "results" / "rft-seed1.json").rename(moved.parent / "kept.json")
    with pytest.raises(
        ValueError, match=r"nft .* made with seed 1: what is in model\.name has changed; .*nft-seed1\.json"
    ):
        _check(moved)


def test_variants_of_a_seed_that_began_with_different_weights_are_not_compared(moved: Path) -> None:
    """As when two machines, each with a warm start of its own, do one variant each."""
    result = moved.parent / "study" / "results" / "rft-seed1.json"
    content = json.loads(result.read_text())
    content["own_files"]["model.name"] = "0" * 16
    result.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"nft-seed1 and rft-seed1 can't be .*: what was in model\.name differed"):
        _check(moved)


def test_a_run_that_began_with_another_warm_start_is_not_gone_on_with(moved: Path) -> None:
    """Its result isn't there yet: what it began with stands beside it."""
    (moved.parent / "study" / "results" / "nft-seed1.json").unlink()
    (moved.parent / "study" / "results" / "rft-seed1.json").unlink()
    (job,) = (job for job in _check(moved).jobs if job.name == "nft-seed1")
    run = moved.parent / "study" / "runs" / job.name
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(dict(job.config)))
    (run / "environment.json").write_text("{}")
    begun = StudyFolder(moved.parent / "study").begun_path(job.name)
    begun.write_text(json.dumps(dict(job.user_files)))
    assert len(_check(moved).done) == 2
    begun.write_text(json.dumps(dict(job.user_files) | {"model.name": "0" * 16}))
    with pytest.raises(ValueError, match=r"its run began with seed 1: what is in model\.name has changed; .*nft-seed1"):
        _check(moved)


@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow)])
def test_a_study_that_is_stopped_leaves_nothing_running(tmp_path: Path, name: str) -> None:
    """The signal meets the study alone, while its run is in its second step: that is told, and ends after it."""
    write_tiny_config(tmp_path, run__steps=100_000, run__checkpoint_every=100_000, training__learning_rate=1e-9)
    path = write_study(tmp_path, "stopped", seeds=0, variants={"nft": None}, reference="nft")
    ended = negaware("study", path, faults=[Fault(name, "negaware.loop.state:RunState.finish_step", 3, to_parent=True)])
    assert ended.code == 130, ended.err
    assert "Stopping: each run ends after its step, with a checkpoint." in ended.out
    assert ended.err == "\nInterrupted. The same command goes on from the last finished step of each run.\n"
    folder = StudyFolder(tmp_path / "stopped")
    with folder.locked():  # every process that had the lock has gone
        pass
    steps = (folder.path / "runs/nft-seed0/metrics.jsonl").read_text().count("\n") - 1
    assert steps >= 2
    assert [path.name for path in folder.path.glob("runs/*/checkpoints/*")] == [f"step-{steps:06d}"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    write_tiny_config(tmp_path)
    path = write_study(
        tmp_path, "planned", variants={"nft": None, "low": {"objective": {"epsilon": 0.1}}}, reference=""
    )
    ended = negaware("study", path, "--dry-run", "--jobs", 3)
    assert ended.code == 0, ended.err
    assert "   1  nft-seed0  to do\n   2  low-seed0  to do\n   3  nft-seed1  to do\n" in ended.out
    assert "nft: the base as it is\nlow: objective.epsilon: 0.1\n" in ended.out
    assert "4 runs, 0 done, 4 to do, 3 at a time" in ended.out
    assert "5 steps: 10 optimizer steps, 120 answers trained on" in ended.out
    assert not (tmp_path / "planned").exists()
    assert read_study(path).reference == "nft"
