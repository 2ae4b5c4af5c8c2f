"""What the report is made of, without a browser; test_report_browser.py opens it in one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from negaware.runs.folder import RunFolder
from negaware.runs.report import write_report


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """The page without its scripts, and the data in it."""
    page = path.read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return re.sub(r"<(script|style|noscript)\b.*?</\1>", "", page, flags=re.DOTALL), json.loads(data)


def test_the_headline_says_whether_the_run_worked(write_run, tmp_path):
    run = write_run("demo")
    after = run.read_summary()["after"]["greedy_accuracy"]["value"]
    page, _ = read(write_report([run.path], tmp_path / "new" / "report.html"))
    assert f'<h1 id="outcome-title">demo: held-out accuracy rose from 31.0% to {after:.1%}</h1>' in page
    assert f"▲ {100 * (after - 0.31):+.1f} points [" in page
    assert "avg@4: 11.0% →" in page
    assert "epsilon: 1.0" in page
    assert 'class="note"' not in page


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.33, 'level">+2.0 points [-2.0, +6.0], which may be chance<'),
        (0.36, 'up">▲ +5.0 points [+1.0, +9.0]<'),  # the two figures' own intervals overlap
        (0.1, 'down">▼ -21.0 points [-25.0, -17.0]<'),
    ],
)
def test_the_headline_claims_no_more_than_the_changes_interval(write_run, tmp_path, value, words):
    run = write_run("demo", num_groups=1)
    summary = run.read_summary()
    change = value - 0.31
    summary["after"]["greedy_accuracy"] |= {"value": value, "low": value - 0.05, "high": value + 0.05}
    summary["change"]["greedy_accuracy"] |= {"value": change, "low": change - 0.04, "high": change + 0.04}
    run.write_summary(summary)
    assert words in read(write_report([run.path], tmp_path / "report.html"))[0]
    del summary["change"]
    run.write_summary(summary)
    assert f'level">{100 * change:+.1f} points<' in read(write_report([run.path], tmp_path / "report.html"))[0]


def test_what_did_not_change_stayed_at_its_value(write_run, tmp_path):
    run = write_run("demo", num_groups=1)
    summary = run.read_summary()
    for moment in ("before", "after"):
        summary[moment]["greedy_accuracy"]["value"] = 1.0
    run.write_summary(summary)
    assert "demo: held-out accuracy stayed at 100.0%<" in read(write_report([run.path], tmp_path / "report.html"))[0]
    summary["after"]["greedy_accuracy"]["value"] = 0.9999  # another value, and the same figure
    run.write_summary(summary)
    assert "held-out accuracy stayed at 100.0%<" in read(write_report([run.path], tmp_path / "report.html"))[0]


def test_few_problems_carry_a_word_of_caution_on_the_page(write_run, tmp_path):
    run = write_run("demo", num_groups=1)
    summary = run.read_summary()
    for moment in ("before", "after", "change"):
        summary[moment]["greedy_accuracy"] |= {"num_problems": 30, "num_questions": 30}
    run.write_summary(summary)
    run.log(25, {"evaluation/accuracy": 0.5, "evaluation/num_questions": 10})
    page = read(write_report([run.path], tmp_path / "report.html"))[0]
    assert (
        '<p class="note">only 30 problems, so one of them is 3.33 points: too few to tell small differences</p>' in page
    )
    assert '<p class="note">held-out accuracy on the way: only 10 problems, so one of them is 10 points:' in page


def test_several_runs_show_where_their_configs_differ_and_nothing_else(write_run, tmp_path):
    runs = [write_run("a", num_groups=1), write_run("b", num_groups=1, objective="grpo")]
    page, data = read(write_report([run.path for run in runs], tmp_path / "report.html"))
    (table,) = re.findall(r'<table class="config">.*?</table>', page, re.DOTALL)
    assert "(1 of 5 fields)" in table
    assert re.findall(r"<t[dh]\b[^>]*>([^<]*)<", table) == [
        "field",
        "a",
        "b",
        "objective.name",
        "&quot;nft&quot;",
        "&quot;grpo&quot;",
    ]
    assert [run["label"] for run in data["runs"]] == ["a", "b"]
    page, _ = read(write_report([runs[0].path, write_run("c", num_groups=1).path], tmp_path / "report.html"))
    assert "The configs do not differ." in page


@pytest.mark.parametrize("again", ["a", "b/../a", "link"])
def test_a_run_given_twice_is_refused(write_run, tmp_path, again):
    first, other = write_run("a", num_groups=1).path, write_run("b", num_groups=1).path
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(ValueError, match=rf"{again} is the same run folder as {first}; give each run once\.$"):
        write_report([first, other, tmp_path / again], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("steps", "said"), [([], "0 steps"), ([1], "1 step"), ([1, 2], "2 steps")])
def test_steps_are_counted_in_words(tmp_path, steps, said):
    run = RunFolder.create(tmp_path / "run", {})
    for step in [0, *steps]:
        run.log(step, {"train/loss": 0.5})
    assert f'<p class="facts">{said} · ' in read(write_report([run.path], tmp_path / "report.html"))[0]


def test_runs_of_one_name_are_told_apart_by_their_parents(write_run, tmp_path):
    runs = [write_run("monday/demo", num_groups=1), write_run("tuesday/demo", num_groups=1)]
    data = read(write_report([run.path for run in runs], tmp_path / "report.html"))[1]
    assert [run["label"] for run in data["runs"]] == ["monday/demo", "tuesday/demo"]


def test_a_run_still_going_shows_what_there_is_and_says_what_is_missing(write_run, tmp_path):
    run = write_run("going", num_groups=1)
    (run.path / "summary.json").unlink()
    with run.metrics_path.open("a") as file:
        file.write('{"step": 21, "train/lo')
    page, data = read(write_report([run.path], tmp_path / "report.html"))
    assert "not finished (no summary.json): its last logged step is 20" in page
    assert "the last line of metrics.jsonl is torn and left out" in page
    assert "held-out accuracy rose so far from 31.0%" in page
    assert data["runs"][0]["series"]["step"] == list(range(21))


def test_without_evaluation_or_answers_the_report_says_so(tmp_path):
    run = RunFolder.create(tmp_path / "run", {})
    run.log(1, {"train/loss": float("nan"), "rollout/pass_rate": 0.5})
    page, data = read(write_report([run.path], tmp_path / "report.html"))
    assert "run: no held-out evaluation yet" in page
    assert re.search(r"never logged: Held-out accuracy, .*, Loss, ", page)
    assert "no sampled answers are kept" in page
    assert data["runs"][0]["series"]["train/loss"] == [None]
    assert data["answers"] == []


def test_a_summary_of_another_step_is_pointed_out(write_run, tmp_path):
    run = write_run("resumed", num_groups=1)
    run.log(21, {"train/loss": 0.1})
    page = read(write_report([run.path], tmp_path / "report.html"))[0]
    assert "summary.json is of step 20, the metrics go to 21" in page


def test_curves_of_very_many_steps_are_thinned_but_for_their_evaluations(tmp_path):
    run = RunFolder.create(tmp_path / "endless", {})
    lines = [{"step": step, "seconds": 1.0 * step, "train/loss": 0.5} for step in range(1, 5001)]
    for line in lines[99::100]:
        line["evaluation/accuracy"] = 0.4
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, data = read(write_report([run.path], tmp_path / "report.html"))
    series = data["runs"][0]["series"]
    assert series["step"] == sorted(set(series["step"]))
    assert (series["step"][0], series["step"][-1], len(series["step"])) == (1, 5000, 1050)
    evaluated = zip(series["step"], series["evaluation/accuracy"], strict=True)
    assert [step for step, value in evaluated if value is not None] == list(range(100, 5001, 100))
    assert "curves show evenly chosen steps of the 5,000" in page


def test_many_and_long_answers_are_cut_and_counted(tmp_path):
    run = RunFolder.create(tmp_path / "long", {})
    text = "beginning " + "x" * 50_000 + " end"
    for step in range(1, 601):
        run.write_answers(step, [{"step": step, "question": "q", "answer": text, "reason": "wrong"}] * 10)
    began = time.monotonic()
    output = write_report([run.path], tmp_path / "report.html")
    assert time.monotonic() - began < 10
    page, data = read(output)
    assert len(data["answers"]) == 500 * 8
    assert {data["answers"][0]["step"], data["answers"][-1]["step"]} == {1, 600}
    assert "long: 1,000 answers of the steps shown (at most 8 a step)" in page
    assert "long: all answers of 100 of 600 steps" in page
    shown = data["answers"][0]["answer"]
    assert shown.startswith("beginning ")
    assert "[… 48,014 characters left out …]" in shown
    assert shown.endswith(" end")
    assert data["questions"] == ["q"]
    assert output.stat().st_size < 20_000_000


def test_the_page_names_no_address_to_load(write_run, tmp_path):
    page, _ = read(write_report([write_run("a", num_groups=1).path], tmp_path / "report.html"))
    assert not re.findall(r"""(?:src|href)=["']?(?!["']?(?:#|data:))""", page)
    assert "default-src 'none'" in page


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    with pytest.raises(ValueError, match="no run folder was given"):
        write_report([], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_staleness_is_drawn_of_runs_that_have_any(write_run, tmp_path):
    run = write_run("demo")
    page, data = read(write_report([run.path], tmp_path / "none.html"))
    assert "Staleness" not in [chart["title"] for chart in data["charts"]]
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    lines[-1]["rollout/staleness_mean"] = 0.5
    run.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, data = read(write_report([run.path], tmp_path / "some.html"))
    assert [chart["title"] for chart in data["charts"]].count("Staleness") == 1
    assert "never logged" not in page
