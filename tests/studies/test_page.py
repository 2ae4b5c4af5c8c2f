"""A study's report page in a real browser: sorting, hiding, saving; and that results alone are enough for it."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from negaware.cli import main
from negaware.runs.folder import RunFolder
from negaware.runs.palette import look
from negaware.studies.page import write_page
from negaware.studies.results import StudyResults
from synthetic_study import NINE, study

HOSTILE = "</script><img src=x onerror=window.hacked=1>|&_$"


@pytest.fixture(scope="module")
def results() -> StudyResults:
    """54 runs: nine variants, one with a hostile name, of six seeds."""
    names = (*NINE[:-1], HOSTILE)
    return study(names, range(6), steps=8, problems=60, margins={"greedy_accuracy": 0.05})


@pytest.fixture(scope="module")
def written(results, tmp_path_factory) -> Path:
    return write_page(results, tmp_path_factory.mktemp("study"))


@pytest.fixture
def page(open_page, written) -> Any:
    return open_page(written, accept_downloads=True)


def column(page: Any, number: int, table: str = ".variants") -> list[str]:
    cells = page.locator(f"table{table} tbody tr > :nth-child({number})").all_text_contents()
    return [text.strip("●■▲◆✚✖▼★") for text in cells]


def saved(page: Any, click: str) -> str:
    with page.expect_download() as download:
        page.click(click)
    return Path(download.value.path()).read_text(encoding="utf-8")


def traces(page: Any, key: str) -> list[dict[str, Any]]:
    return page.evaluate(
        """key => document.querySelector(`figure[data-key="${key}"] .plot`).data
            .map(({name, x, y, line, opacity}) => ({name, x, y, color: line.color, width: line.width}))""",
        key,
    )


def test_fifty_runs_are_a_table_and_curves_a_variant(page, results):
    assert page.locator(".card").count() == 0
    assert column(page, 1) == list(results.variants)
    assert page.locator("table.variants").bounding_box()["y"] < 300  # on the first screen
    assert page.locator("table.variants svg.swatch").count() == 9
    drawn = {one["name"]: one for one in traces(page, "evaluation/accuracy")}
    for number, variant in enumerate(results.variants):
        runs = results.of(variant)
        steps = [line["step"] for line in runs[0].metrics if "evaluation/accuracy" in line]
        means = [sum(run.metrics[step]["evaluation/accuracy"] for run in runs) / 6 for step in steps]
        assert drawn[variant]["x"] == steps
        assert drawn[variant]["y"] == pytest.approx(means, rel=1e-5)
        seeds = drawn[f"{variant}, seeds"]
        assert seeds["y"].count(None) == 6  # a gap after each
        assert len(seeds["y"]) == 6 * (len(steps) + 1)
        assert seeds["width"] < drawn[variant]["width"]
        assert {seeds["color"], drawn[variant]["color"]} == {look(number).light}
        assert drawn[f"{variant}, low"]["y"][-1] < means[-1] < drawn[f"{variant}, high"]["y"][-1]


def test_the_table_sorts_by_any_column_and_back(page, results):
    order = list(results.variants)
    head = page.locator("table.variants thead th").nth(2)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    values = [float(text.split("%")[0]) for text in column(page, 3)]
    assert values == sorted(values, reverse=True)
    assert column(page, 1) != order
    head.locator("button").click()
    assert [float(text.split("%")[0]) for text in column(page, 3)] == sorted(values)
    head.locator("button").click()
    assert (head.get_attribute("aria-sort"), column(page, 1)) == ("none", order)
    page.locator("table.variants thead button").nth(0).click()
    assert column(page, 1) == sorted(order, key=lambda name: (name[0].isalpha(), name.replace("_", " ")))
    page.locator("table.variants thead button", has_text="training").click()
    times = [60 * int(text.split(":")[0]) + int(text.split(":")[1]) for text in column(page, 10)]
    assert times == sorted(times, reverse=True)
    points = page.locator("table.variants thead button", has_text="points above rft")
    points.click()
    assert column(page, 5)[-1] == "the reference"  # what has no figure goes last
    points.click()
    assert column(page, 5)[-1] == "the reference"


def test_a_hostile_name_is_only_text_and_a_variant_can_be_hidden(page):
    assert HOSTILE in page.inner_text("#legend")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0

    before = {one["name"] for one in traces(page, "train/entropy")}
    button = page.locator("#legend button", has_text="dr_grpo")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    gone = {f"dr_grpo{end}" for end in ("", ", seeds", ", low", ", high")}
    assert {one["name"] for one in traces(page, "train/entropy")} == before - gone
    button.click()
    assert {one["name"] for one in traces(page, "train/entropy")} == before


def test_what_is_saved_holds_what_is_shown(page, results):
    page.locator("table.variants thead button").nth(2).click()
    shown = [column(page, number) for number in range(1, 11)]
    text = saved(page, "table.variants button:has-text('CSV')")
    head, *rows = csv.reader(io.StringIO(text))
    assert head[0] == "variant"
    assert [list(one) for one in zip(*rows, strict=True)] == shown
    markdown = saved(page, "table.variants button:has-text('Markdown')").splitlines()
    assert markdown[1].startswith("| --- | ---: |")
    assert [line.split(" | ")[1:3] for line in markdown[2:]] == [row[1:3] for row in rows]
    assert any("window.hacked=1>\\|&_$ |" in line for line in markdown)
    latex = saved(page, "table.variants button:has-text('LaTeX')")
    assert latex.count(" \\\\\n") == 10
    assert "\\textless{}/script\\textgreater{}" in latex
    assert "dr\\_grpo & 6 & " in latex
    assert rows[0][2].replace("%", "\\%").replace("[", "{[}").replace("]", "{]}") in latex

    figures = list(csv.DictReader(io.StringIO(saved(page, "#export-figures"))))
    assert set(figures[0]) == {"study", "variant", "seed", "step", "measure", "value", "low", "high"}
    run = results.of("rft")[3]
    found = [one for one in figures if (one["variant"], one["seed"]) == ("rft", str(run.seed))]
    entropies = [float(one["value"]) for one in found if one["measure"] == "train/entropy"]
    assert entropies == pytest.approx([line["train/entropy"] for line in run.metrics if "train/entropy" in line], 1e-5)
    last = [one for one in found if one["measure"] == "evaluation/accuracy"][-1]
    assert float(last["low"]) < float(last["value"]) < float(last["high"])


@pytest.mark.slow
def test_a_chart_is_saved_as_a_picture(page):
    svg = saved(page, 'figure[data-key="train/entropy"] button[data-format=svg]')
    assert svg.startswith("<svg")
    with page.expect_download() as download:
        page.click('figure[data-key="train/entropy"] button[data-format=png]')
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window(open_page, written, width):
    page = open_page(written, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.slow
def test_results_alone_make_a_page_and_run_folders_add_their_answers(tmp_path, open_page):
    results = study(problems=60)
    page = open_page(write_page(results, tmp_path))
    assert page.inner_text("h1") == "a study: 2 variants, 2 seeds"
    assert "With fewer than 3 seeds the differences prove nothing." in page.inner_text("#outcome")
    assert page.inner_text("#count") == "No sampled answers are kept."
    (tmp_path / "study.yaml").write_text("base: tiny.yaml\n")
    run = RunFolder.create(tmp_path / "runs" / "rft-seed1", {"objective": "rft"})
    record = {"step": 1, "question": "What is 1 + 1?", "gold": "2", "answer": "2", "reason": "correct"}
    run.write_answers(1, [record])
    page = open_page(write_page(results, tmp_path))
    assert page.inner_text("#count") == "1–1 of 1 answers, page 1 of 1"
    assert "rft-seed1" in page.inner_text("#answer-list")
    assert page.locator("summary", has_text="study.yaml").count() == 1


def test_a_study_on_its_way_says_what_is_missing(tmp_path):
    results = study(("nft", "rft", "grpo"), (0, 1), problems=20)
    going = replace(results, runs=tuple(run for run in results.runs if run.variant == "nft"))
    page = write_page(going, tmp_path, tmp_path / "other.html").read_text()
    assert "4 of 6 runs are not done yet." in page
    with pytest.raises(ValueError, match="holds no finished run of the study a study yet"):
        write_page(replace(results, runs=()), tmp_path)


def test_the_command_takes_a_studys_folder(tmp_path, monkeypatch, capsys):
    """Its study.yaml and results/ are enough; run folders beside it are refused."""
    folder = tmp_path / "first"
    (folder / "results").mkdir(parents=True)
    (folder / "study.yaml").write_text("base: gone.yaml\nvariants: {nft: , rft: {objective: rft}}\nseeds: 0-1\n")
    for run in study(problems=10).runs:
        content = asdict(run) | {"config": {}, "own_files": {}}
        (folder / "results" / f"{run.variant}-seed{run.seed}.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    assert main(["report", "first"]) == 0
    assert capsys.readouterr().out == "report.html\n"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "first: 2 variants, 2 seeds</h1>" in page
    assert "first: differences to nft</caption>" in page
    assert main(["report", "first", str(tmp_path)]) == 2
    assert (
        "first is a study's folder; a page is about one study or about runs, so give that folder alone."
        in capsys.readouterr().err
    )
    (folder / "results" / "nft-seed0.json").write_text("{")
    assert main(["report", "first"]) == 2
    assert "nft-seed0.json is no result of a run" in capsys.readouterr().err
