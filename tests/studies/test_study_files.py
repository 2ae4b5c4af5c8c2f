"""studies/ as it is run: its files are whole, and what compares the runs of on_policy.yaml sees what differs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from forked_command import negaware
from negaware.studies.matrix import jobs_of
from negaware.studies.options import read_study
from tiny_run import write_tiny_config

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def on_policy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("on_policy", STUDIES / "on_policy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_claims_are_all_asked_at_five_seeds() -> None:
    """Every variant's config is whole; the rivals are those that the paper names."""
    study = read_study(STUDIES / "claims.yaml")
    assert study.folder is not None
    jobs = jobs_of(study, STUDIES / study.base, STUDIES / study.folder)
    asked = {job.variant: job.config["objective"]["name"] for job in jobs}
    assert asked == {name: name.split("-")[0] for name in (*study.variants,)}
    assert set(asked.values()) == {"nft", "rft", "grpo", "dr_grpo", "dapo", "infonca"}
    assert len(jobs) == 5 * len(asked)
    assert {job.config["training"]["optimizer_steps"] for job in jobs} == {8}
    assert {job.config["model"]["name"] for job in jobs} == {"runs/warm_start/model"}
    assert study.reference == "rft"
    assert study.margins


def differences(
    on_policy: ModuleType, study: Path, capsys: pytest.CaptureFixture
) -> dict[str, tuple[str, float, float]]:
    """By pair: answers that are the same, the largest difference of a metric, and of a weight."""
    on_policy.main(study)
    rows = [line.split("|")[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("| nft")]
    return {row[0].strip(): (row[1].strip(), float(row[2].split()[0]), float(row[3])) for row in rows}


@pytest.mark.slow
def test_pairs_are_equal_on_policy_and_others_are_not(
    tmp_path: Path, on_policy: ModuleType, capsys: pytest.CaptureFixture
) -> None:
    """The study itself, on the tiny model; then with the runs of two partners exchanged."""
    study = yaml.safe_load((STUDIES / "on_policy.yaml").read_text())
    changes = {f"training__{name}": value for name, value in study["overrides"]["training"].items()}
    write_tiny_config(tmp_path, run__steps=2, evaluation__during=None, **changes)
    small = {"base": "tiny.yaml", "variants": study["variants"], "seeds": study["seeds"], "folder": "equal"}
    (tmp_path / "equal.yaml").write_text(yaml.safe_dump(small, sort_keys=False))
    ended = negaware("study", tmp_path / "equal.yaml", "--jobs", 2)
    assert ended.code == 0, ended.err
    found = differences(on_policy, tmp_path / "equal", capsys)
    assert [*found] == ["nft-grpo, grpo", "nft-one_minus_rate, dr_grpo", "nft-maxrl, maxrl"]
    learning_rate = yaml.safe_load((tmp_path / "tiny.yaml").read_text())["training"]["learning_rate"]
    for answers, metric, weight in found.values():
        same, _, number = answers.split()
        assert same == number != "0"
        assert metric < 1e-3
        assert weight < learning_rate  # half of what two steps move a weight

    runs = tmp_path / "equal" / "runs"
    for name, other in (("grpo", "other"), ("maxrl", "grpo"), ("other", "maxrl")):
        (runs / f"{name}-seed0").rename(runs / f"{other}-seed0")
    exchanged = differences(on_policy, tmp_path / "equal", capsys)
    assert exchanged["nft-grpo, grpo"][1] > 0.05
    assert exchanged["nft-one_minus_rate, dr_grpo"] == found["nft-one_minus_rate, dr_grpo"]
    assert exchanged["nft-maxrl, maxrl"][1] > 0.05
