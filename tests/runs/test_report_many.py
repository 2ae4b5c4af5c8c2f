"""Many runs on one page: grouped by variant, in tables, with what a browser isn't needed for."""

from __future__ import annotations

import json
import re

import pytest

from negaware.estimates import student_t
from negaware.runs.folder import RunFolder
from negaware.runs.overview import runs_table, variants_table
from negaware.runs.report import write_report
from negaware.runs.report_data import RunData, Variant, group_runs, mean_series, series


def made(label: str, seed: int, *, epsilon: float = 1.0, final: float = 0.5, steps: int = 3) -> RunData:
    metrics = [
        {"step": step, "seconds": 10.0 * step + seed, "train/entropy": 1.0 - 0.1 * seed, "evaluation/accuracy": final}
        for step in range(1, steps + 1)
    ]
    summary = {"after": {"avg_at_4": {"value": final, "low": final - 0.1, "high": final + 0.1}}, "train_seconds": 60.0}
    config = {"objective": {"nft": {"epsilon": epsilon}}, "run": {"seed": seed, "folder": label}}
    return RunData(label, None, config, {}, summary, metrics, (), seed)


def six() -> list[RunData]:
    finals = (0.5, 0.6, 0.7)
    return [
        made(f"{name}-seed{seed}", seed, epsilon=epsilon, final=finals[seed])
        for name, epsilon in (("low", 0.1), ("high", 1.0))
        for seed in range(3)
    ]


def test_runs_that_differ_in_seed_and_folder_alone_are_one_variant():
    variants = group_runs(six())
    assert [(one.name, [run.seed for run in one.runs]) for one in variants] == [("low", [0, 1, 2]), ("high", [0, 1, 2])]
    assert [one.name for one in group_runs(six()[:4])] == ["low-seed0", "low-seed1", "low-seed2", "high-seed0"]
    odd = [made(f"run{seed}", seed) for seed in range(5)]
    assert [one.name for one in group_runs(odd)] == ["run0 and 4 more"]
    twice = [*(made(f"a-seed{seed}", seed) for seed in range(3)), *(made(f"a-seed{n}", n, epsilon=0.5) for n in (7, 8))]
    assert [one.name for one in group_runs(twice)] == ["a", "a-seed7"]


def test_the_overview_has_means_with_students_interval_and_a_row_a_run():
    variants = group_runs(six())
    half = student_t(2) * 0.1 / 3**0.5
    accuracy = f"60.0% [{0.6 - half:.1%}, {0.6 + half:.1%}]"
    table = variants_table(variants)
    assert table.columns == (
        *("variant", "runs", "avg@4 [95%]", "last entropy", "answer tokens", "informative share", "training"),
    )
    assert table.rows[0] == ("low", "3", accuracy, "0.9", "–", "–", "1:00")
    assert runs_table(variants).rows[1][:4] == ("low-seed1", "low", "60.0% [50.0%, 70.0%]", "0.9")
    two = variants_table([Variant("low", variants[0].runs[:2])])
    assert two.rows[0][:3] == ("low", "2", "55.0%")  # of two runs no interval


def test_a_mean_curve_is_that_of_its_runs_and_a_single_run_has_none():
    low, _ = group_runs(six())
    mean = mean_series(low, 6)
    assert mean is not None
    assert mean["train/entropy"] == pytest.approx([0.9] * 3)
    assert mean["seconds"] == [11, 21, 31]
    half = student_t(2) * 0.1 / 3**0.5
    assert mean["train/entropy:high"] == pytest.approx([0.9 + half] * 3, rel=1e-5)
    assert mean_series(Variant("one", low.runs[:1]), 6) is None
    assert mean_series(Variant("none", ()), 6) == {key: [] for key in mean if ":" not in key}


def test_fifty_runs_of_very_many_steps_stay_a_few_megabytes(tmp_path):
    """Counted on one of them: what all together may add to the page."""
    long = made("long", 0, steps=2000)
    for line in long.metrics[1::2]:
        line["evaluation/accuracy"] = None
    columns = series(long.metrics, 50)
    assert len(columns["step"]) == 600
    assert (columns["step"][0], columns["step"][-1]) == (1, 2000)
    assert len(json.dumps(columns)) * 50 < 5_000_000


def test_many_folders_make_a_table_and_few_cards(write_run, tmp_path):
    runs = [write_run(f"{name}-seed{seed}", objective=name, num_groups=1) for name in "ab" for seed in range(3)]
    for run in runs:
        seed = int(run.path.name[-1])
        run.write_config(run.read_config() | {"run": {"seed": seed, "folder": str(run.path)}})
    page = write_report([run.path for run in runs], tmp_path / "report.html").read_text()
    body = re.sub(r"<(script|style|noscript)\b.*?</\1>", "", page, flags=re.DOTALL)
    assert 'class="card"' not in body
    variants, each = re.findall(r'<table class="[a-z ]*sortable">.*?</table>', body, re.DOTALL)
    assert re.findall(r'<th scope="row">(.*?)</th>', variants) == ["a", "b"]
    assert len(re.findall(r'<th scope="row">', each)) == 6
    assert "6 runs compared" in body
    (config,) = re.findall(r'<table class="config">.*?</table>', body, re.DOTALL)
    assert re.findall(r"<t[dh]\b[^>]*>([^<]*)<", config) == [
        "field",
        "a",
        "b",
        "objective.name",
        "&quot;a&quot;",
        "&quot;b&quot;",
    ]
    few = write_report([run.path for run in runs[:4]], tmp_path / "report.html").read_text()
    assert few.count('<article class="card">') == 4
    assert '<table class="variants' not in few


def test_what_is_said_of_several_runs_is_said_once(tmp_path):
    runs = [RunFolder.create(tmp_path / f"a-seed{seed}", {"run": {"seed": seed}}) for seed in range(5)]
    runs[4].log(1, {"train/loss": 1.0})
    page = write_report([run.path for run in runs], tmp_path / "report.html").read_text()
    assert page.count("no sampled answers are kept</p>") == 1
    assert "a-seed0, a-seed1, a-seed2 …: not finished (no summary.json): it has logged no step yet" in page
