"""A study's figures: what is drawn, where, and that the files are fit for a paper."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from negaware import libraries
from negaware.studies import canvas
from negaware.studies.canvas import WIDTH, paper_style, printable, write_figure
from negaware.studies.figures import CURVES, _curves_figure, write_figures
from negaware.studies.forest import differences_figure, finals_figure
from synthetic_study import NINE, study

NAMES = ("learning_curves", "entropy", "final_accuracy", "differences")


def words(svg: str) -> list[str]:
    """The texts of an SVG by matplotlib, whose letters are paths with the text in a comment before them."""
    return re.findall(r"<!-- (.*?) -->", svg)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return write_figures(study(margins={"greedy_accuracy": 0.03}), folder), folder / "figures"


def test_every_figure_is_there_in_three_forms_and_a_columns_width(written):
    paths, folder = written
    assert paths == [folder / f"{name}.{kind}" for name in NAMES for kind in ("svg", "png", "pdf")]
    assert sorted(folder.iterdir()) == sorted(paths)
    for name in NAMES:
        (width,) = re.findall(r'<svg .*? width="([\d.]+)pt"', (folder / f"{name}.svg").read_text(), re.DOTALL)
        assert float(width) == pytest.approx(72 * WIDTH)
        header = (folder / f"{name}.png").read_bytes()[:24]
        assert int.from_bytes(header[16:20], "big") == 300 * WIDTH


def test_axis_titles_with_units_and_legend_are_in_every_figure(written):
    _, folder = written
    expected = {
        "learning_curves": {"training step", "held-out accuracy (%)", "nft", "rft", "one seed"},
        "entropy": {"training step", "entropy (nats per token)", "nft", "rft", "one seed"},
        "final_accuracy": {
            *("final held-out accuracy (%)", "accuracy at temperature 0", "avg@4", "nft", "rft"),
            *("mean, 95 % interval", "one seed", "before training"),
        },
        "differences": {
            "difference to rft (points)",
            "nft",
            "paired difference, 95 % interval",
            "margin of equivalence",
        },
    }
    for name, texts in expected.items():
        assert texts <= set(words((folder / f"{name}.svg").read_text()))


def test_a_pdf_has_all_its_fonts_in_it_as_truetype(written):
    _, folder = written
    for name in NAMES:
        content = (folder / f"{name}.pdf").read_bytes()
        fonts = re.findall(rb"/Type /FontDescriptor.*?endobj", content, re.DOTALL)
        assert fonts
        assert all(b"/FontFile2 " in font for font in fonts)
        assert b"/Type3" not in content


def test_the_same_results_give_the_same_bytes(written, tmp_path):
    with paper_style():
        figure = finals_figure(study())
        assert figure is not None
        for path in write_figure(figure, tmp_path / "final_accuracy"):
            assert path.read_bytes() == (written[1] / path.name).read_bytes(), path.name


def lines(axes, color):
    return [line.get_xydata().tolist() for line in axes.lines if line.get_color() == color]


def test_a_curve_is_the_mean_of_its_seeds_and_of_three_has_students_interval():
    results = study(("nft",), (0, 1, 2), problems=5)
    flat = [replace(run, metrics=({"step": 4, "evaluation/accuracy": 0.5 + 0.1 * run.seed},)) for run in results.runs]
    with paper_style():
        (axes,) = _curves_figure(replace(results, runs=tuple(flat)), CURVES[0]).axes
        two = _curves_figure(replace(results, runs=tuple(flat[:2])), CURVES[0]).axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[4, pytest.approx(60)]]]
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    half = 100 * 4.302653 * 0.1 / 3**0.5  # Student's t of two degrees at 97.5 %
    assert (min(ends), max(ends)) == pytest.approx((60 - half, 60 + half), rel=1e-4)
    assert not two.collections  # of two seeds: themselves instead
    assert sorted(line.get_ydata()[0] for line in two.lines) == pytest.approx([50, 55, 60])


def test_more_variants_than_a_panel_holds_have_one_each_with_the_reference_behind():
    with paper_style():
        figure = _curves_figure(study(NINE, (0, 1, 2), problems=5), CURVES[0])
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(NINE)
    own = [axes.lines[-1].get_xydata().tolist() for axes in figure.axes]
    assert all(lines(axes, "#5f6772") == [own[1]] for place, axes in enumerate(figure.axes) if place != 1)
    assert len({axes.lines[-1].get_color() for axes in figure.axes}) == 9
    assert len({(axes.lines[-1].get_marker(), str(axes.lines[-1]._dash_pattern)) for axes in figure.axes}) == 9


def test_a_row_lies_at_its_estimate_and_the_margin_is_drawn():
    results = study(("nft", "rft", "grpo"), (0, 1, 2), margins={"avg_at_4": 0.03}, problems=40)
    with paper_style():
        finals, differences = finals_figure(results), differences_figure(results)
    for axes, measure in zip(finals.axes, results.measures(), strict=True):
        for place, variant in enumerate(results.variants):
            ends = [sum(run.after[measure].values()) / 0.4 for run in results.of(variant)]
            seeds, interval, point = (line.get_xdata() for line in axes.lines[1 + 3 * place : 4 + 3 * place])
            assert list(seeds) == pytest.approx(ends)
            assert list(point) == pytest.approx([sum(ends) / 3])
            assert interval[0] < point[0] < interval[1]
    first, second = differences.axes
    assert [label.get_text() for label in second.get_yticklabels()] == ["nft", "grpo"]
    assert not first.patches
    (margin,) = second.patches
    assert (margin.get_x(), margin.get_width()) == pytest.approx((-3, 6))
    nft, rft = ([sum(run.after["avg_at_4"].values()) / 0.4 for run in results.of(name)] for name in ("nft", "rft"))
    assert second.lines[3].get_xdata()[0] == pytest.approx((sum(nft) - sum(rft)) / 3)
    assert second.lines[1].get_color() == finals.axes[1].lines[1].get_color()  # nft's


def test_variants_that_began_otherwise_have_no_line_in_common():
    whole = study(problems=40)
    with paper_style():
        assert lines(finals_figure(whole).axes[0], "#5f6772")
        runs = [replace(run, before=run.after) if run.variant == "nft" else run for run in whole.runs]
        figure = finals_figure(replace(whole, runs=tuple(runs)))
    assert not any(lines(axes, "#5f6772") for axes in figure.axes)


def test_what_was_not_measured_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "FORMATS", ("svg",))
    results = study(("nft", "rft"), (0,), problems=10)
    assert write_figures(replace(results, runs=()), tmp_path) == []
    bare = tuple(
        replace(run, metrics=tuple({"step": line["step"], "train/entropy": 1.0} for line in run.metrics), before={})
        for run in results.runs
        if run.variant == "nft"
    )
    names = [path.name for path in write_figures(replace(results, runs=bare), tmp_path)]
    assert names == ["entropy.svg", "final_accuracy.svg"]
    assert "one seed alone: no interval" in words((tmp_path / "figures" / "entropy.svg").read_text())
    assert "before training" not in words((tmp_path / "figures" / "final_accuracy.svg").read_text())


def test_any_name_is_only_text(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "FORMATS", ("svg",))
    names = ("_hidden", "$\\alpha", "</svg><script>x", "漢字 \u2028\n and a very long name after it")
    with paper_style():
        assert printable(names[3]) == "?? ?? and a very long nam…"
    write_figures(study(names, (0,), problems=10), tmp_path)
    for name in ("learning_curves", "final_accuracy"):
        svg = (tmp_path / "figures" / f"{name}.svg").read_text()
        assert {"_hidden", "$\\alpha"} <= set(words(svg))
        assert "<script" not in svg


def test_without_matplotlib_one_sentence_says_so(monkeypatch, tmp_path):
    def missing(name):
        raise libraries.PackageNotFoundError(name)

    monkeypatch.setattr(libraries, "version", missing)
    with pytest.raises(
        ValueError, match=r"a study's figures needs the package matplotlib.*pip install 'matplotlib>=3\.9'"
    ):
        write_figures(study(problems=5), tmp_path)


@pytest.mark.slow
def test_nine_variants_of_five_seeds_fit_a_page(tmp_path):
    paths = write_figures(study(NINE, range(5), steps=500, margins={"avg_at_4": 0.02}), tmp_path)
    assert len(paths) == 12
    for path in paths:
        if path.suffix == ".svg":
            (height,) = re.findall(r'<svg .*? height="([\d.]+)pt"', path.read_text(), re.DOTALL)
            assert float(height) <= 9 * 72
