"""The report in a real headless Chromium: what a person would click, and that nothing leaves the machine."""

from __future__ import annotations

from typing import Any

import pytest

from negaware.runs.folder import RunFolder
from negaware.runs.report import write_report

TEXTS = "nodes => nodes.map(node => node.textContent)"


@pytest.fixture
def open_report(open_page, tmp_path):
    """Opens the report of some runs."""

    def open_runs(runs: list[RunFolder], **options: Any) -> Any:
        return open_page(write_report([run.path for run in runs], tmp_path / "report.html"), **options)

    return open_runs


def trace(page: Any, key: str, name: str) -> dict[str, Any]:
    """The curve of one run in one chart, as Plotly drew it."""
    found = page.evaluate(
        """([key, name]) => document.querySelector(`figure[data-key="${key}"] .plot`).data
            .filter(trace => trace.name === name)
            .map(trace => ({x: trace.x, y: trace.y, dash: trace.line.dash, symbol: trace.marker?.symbol}))""",
        [key, name],
    )
    assert len(found) == 1
    return found[0]


@pytest.fixture
def two_runs(write_run) -> list[RunFolder]:
    return [write_run("nft-run"), write_run("grpo-run", objective="grpo", lift=0.3)]


def test_curves_hold_the_metrics_against_step_and_time(open_report, two_runs):
    page = open_report(two_runs)
    logged = two_runs[1].read_metrics()
    loss = [line for line in logged if "train/loss" in line]
    curve = trace(page, "train/loss", "grpo-run")
    assert curve["x"] == [line["step"] for line in loss]
    assert curve["y"] == pytest.approx([line["train/loss"] for line in loss], rel=1e-5)

    evaluated = [line for line in logged if "evaluation/accuracy" in line]
    for edge in ("low", "high"):
        band = trace(page, "evaluation/accuracy", f"grpo-run, {edge}")
        assert band["x"] == [0, 5, 10, 15, 20]
        assert band["y"] == pytest.approx([line[f"evaluation/accuracy_{edge}"] for line in evaluated], rel=1e-5)

    page.get_by_text("against time").click()
    curve = trace(page, "train/loss", "grpo-run")
    assert curve["x"] == pytest.approx([line["seconds"] / 60 for line in loss])
    assert "minutes since" in page.inner_text('figure[data-key="train/loss"]')
    page.get_by_text("against step").click()
    assert trace(page, "train/loss", "grpo-run")["x"] == [line["step"] for line in loss]


def test_every_curve_is_painted_and_told_apart_without_colour(open_report, two_runs):
    page = open_report(two_runs)
    assert page.locator("figure").count() == 10
    for figure in page.locator("figure").all():
        painted = figure.locator("path.js-line").evaluate_all(
            "paths => paths.map(path => path.getAttribute('d').length)"
        )
        assert len(painted) >= 2
        assert min(painted) > 20
    first, second = trace(page, "train/loss", "nft-run"), trace(page, "train/loss", "grpo-run")
    assert first["dash"] != second["dash"]
    assert first["symbol"] != second["symbol"]

    page.locator("#legend button", has_text="nft-run").click()
    assert page.locator("#legend button", has_text="nft-run").get_attribute("aria-pressed") == "false"
    names = "document.querySelector('figure[data-key=\"train/loss\"] .plot').data.map(trace => trace.name)"
    assert page.evaluate(names) == ["grpo-run"]


def test_answers_filter_by_run_step_and_verdict_and_turn_pages(open_report, two_runs):
    page = open_report(two_runs)
    assert page.inner_text("#count") == "1–20 of 1,280 answers, page 1 of 64"

    page.select_option("#filter-run", "1")
    page.select_option("#filter-step", "7")
    expected = two_runs[1].read_answers(7)
    assert page.inner_text("#count") == f"1–20 of {len(expected)} answers, page 1 of 2"
    shown = page.eval_on_selector_all("dd[data-field=answer]", TEXTS)
    page.click("#next")
    shown += page.eval_on_selector_all("dd[data-field=answer]", TEXTS)
    assert [text.replace("\ufffd", "\ud800") for text in shown] == [record["answer"] for record in expected]
    assert page.is_disabled("#next")

    page.select_option("#filter-verdict", "no_answer")
    expected = [record for record in expected if record["reason"] == "no_answer"]
    assert 0 < len(expected) <= 20
    for field in ("question", "gold"):
        shown = page.eval_on_selector_all(f"dd[data-field={field}]", TEXTS)
        assert [text.replace("\ufffd", "\ud800") for text in shown] == [record[field] for record in expected]
    assert set(page.eval_on_selector_all("dd[data-field=extracted]", TEXTS)) == {"(nothing)"}
    assert set(page.eval_on_selector_all("#answer-list .verdict", TEXTS)) == {"∅ no answer"}
    assert "group's pass rate 38%" in page.inner_text("#answer-list > li >> nth=0")

    page.fill("#filter-text", "nothing says this")
    assert page.inner_text("#count") == "No answer matches these filters."


def test_hostile_text_is_only_text(open_report, two_runs):
    page = open_report(two_runs)
    page.fill("#filter-text", "onerror")
    assert "</script><script>window.hacked=1</script><img src=x" in page.inner_text("#answer-list > li >> nth=0")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#answer-list img, #answer-list script").count() == 0


def test_hostile_labels_config_and_metrics_are_only_text(open_report, write_run):
    hostile = "<img src=x onerror=window.hacked=3>"
    run, other = write_run(hostile, objective=hostile), write_run("other", objective="</table><script>hacked=4")
    page = open_report([run, other])
    assert hostile in page.inner_text("#legend")
    assert hostile in page.inner_text("#config table")
    page.hover('figure[data-key="train/loss"] .plot')
    page.select_option("#filter-run", "0")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        ("light", 400),
        ("dark", 1280),
        pytest.param("light", 1280, marks=pytest.mark.slow),
        pytest.param("dark", 400, marks=pytest.mark.slow),
    ],
)
def test_fits_the_window_in_light_and_dark(open_report, two_runs, width, scheme):
    page = open_report(two_runs, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    )

    def brightness(color: str) -> int:
        return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(",")))

    assert (brightness(ground) > brightness(ink)) == (scheme == "light")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != scheme


def test_a_run_that_only_began_still_renders(open_report, tmp_path):
    run = RunFolder.create(tmp_path / "young", {"seed": 0})
    page = open_report([run])
    assert page.inner_text("h1") == "young: no held-out evaluation yet"
    assert page.inner_text("#count") == "No sampled answers are kept."
    assert page.locator("figure .empty").count() == 10


def test_shares_of_one_step_are_drawn_between_none_and_all(open_report, tmp_path):
    """A share that isn't one keeps its place in the picture."""
    run = RunFolder.create(tmp_path / "short", {})
    run.log(1, {"rollout/pass_rate": 0.9, "rollout/informative_share": 1.5, "train/loss": 0.5})
    page = open_report([run])
    ends = """key => document.querySelector(`figure[data-key="${key}"] .plot`)._fullLayout.yaxis.range"""
    assert page.evaluate(ends, "rollout/pass_rate") == [0, 1]
    low, high = page.evaluate(ends, "rollout/informative_share")
    assert low < 1.5 < high
