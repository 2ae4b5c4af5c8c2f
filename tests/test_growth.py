"""How cost grows: the pure parts (slopes, counts, table, figure), and one step of a tiny model at its forced length."""

import math
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from tiny_models import llama

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import growth
from growth_counts import (
    COUNTS,
    FACTORS,
    QUANTITIES,
    Model,
    Rates,
    Shape,
    expected_slope,
    slope,
    upper_half,
    upper_slope,
)
from growth_figure import figure

RATES = Rates(operations=4e11, bytes=2e10)


@pytest.fixture
def measured():
    """Measurements that are the counts themselves, so that every slope is the expected one."""
    return {
        name: {
            "rates": {"operations": RATES.operations, "bytes": RATES.bytes},
            "points": [
                {"value": value}
                | {
                    quantity: count(factor.model(value), factor.shape(value), RATES)
                    for quantity, count in COUNTS.items()
                }
                for value in factor.values
            ],
        }
        for name, factor in FACTORS.items()
    }


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_a_power_law_has_its_power_as_slope(power):
    values = [16, 32, 64, 128]
    assert slope(values, [3.0 * value**power for value in values]) == pytest.approx(power, abs=1e-12)


def test_the_slope_is_that_of_least_squares():
    # log2 costs 0, 2, 1 over log2 values 0, 1, 2: Σ(x − 1)(y − 1) / Σ(x − 1)² = (1 + 0) / 2
    assert slope([1, 2, 4], [1, 4, 2]) == pytest.approx(0.5)


def test_a_slope_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="two different values"):
        slope([4, 4], [1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        slope([2, 4], [0.0, 2.0])


def test_only_the_upper_half_counts():
    assert upper_half([16, 32, 64, 128, 256, 512, 1024, 2048]) == [4, 5, 6, 7]
    assert upper_half([2, 8, 32]) == [1, 2]
    assert upper_half([192, 384, 576, 768, 960, 1152]) == [2, 3, 4, 5]
    assert upper_half([1, 2, 1000]) == [1, 2]  # one value alone has no slope
    assert upper_slope([1, 2, 4, 8], [7.0, 7.0, 1.0, 2.0]) == pytest.approx(1.0)


def test_the_counted_weights_are_the_models():
    # SmolLM2-135M has 134,515,008 parameters, of which (2 · 30 + 1) · 576 are norms.
    assert Model().weights == 134_515_008 - 61 * 576
    network = growth.load_model(FACTORS["width"], 192)
    sizes = Model.of_width(192)
    assert sum(p.numel() for p in network.parameters()) == sizes.weights + (2 * sizes.layers + 1) * sizes.width


def test_counts_tend_to_the_slopes_that_are_said():
    """Far out, where one term has outgrown the others."""
    far = {"length": [2**22, 2**23], "completions": [2**14, 2**15], "questions": [2**14, 2**15]}
    for name, values in far.items():
        factor = FACTORS[name]
        for quantity in ("training_seconds", "training_mib"):
            shapes = [factor.shape(value) for value in values]
            if name == "length":  # the one micro-batch holds any length
                shapes = [replace(shape, micro_batch_tokens=2**30) for shape in shapes]
            costs = [COUNTS[quantity](Model(), shape, RATES) for shape in shapes]
            assert slope(values, costs) == pytest.approx(factor.limits[quantity][0], abs=0.02), (name, quantity)
    wide = [2**18 * 192, 2**19 * 192]
    costs = [COUNTS["training_seconds"](Model.of_width(width), Shape(), RATES) for width in wide]
    assert slope(wide, costs) == pytest.approx(2, abs=0.02)


def test_few_rows_decode_in_the_time_of_reading_the_weights():
    counts = [COUNTS["sampling_seconds"](Model(), Shape(questions=1, completions=k), RATES) for k in (2, 4)]
    assert counts[1] / counts[0] < 1.1
    counts = [COUNTS["sampling_seconds"](Model(), Shape(questions=1, completions=k), RATES) for k in (128, 256)]
    assert counts[1] / counts[0] == pytest.approx(2, rel=0.1)


def test_the_table_holds_every_point_and_every_slope(measured):
    text = growth.markdown(measured, "About.", "growth.svg")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    points = sum(len(factor.values) for factor in FACTORS.values())
    # header and rule of each of the five tables
    assert len(lines) == points + len(FACTORS) * len(QUANTITIES) + 2 * (len(FACTORS) + 1)
    expected = expected_slope(FACTORS["length"], FACTORS["length"].values, "training_seconds", RATES)
    (row,) = (line for line in lines if line.startswith("| answer length: training time"))
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["256–2,048", f"{expected:.2f}", f"{expected:.2f}"]
    assert 0.9 < expected < 1.1  # at these lengths neither the optimizer nor the pairs count for much


def test_the_figure_is_xml_with_every_point_inside(measured):
    slopes = {name: growth.slopes_of(FACTORS[name], found) for name, found in measured.items()}
    root = ElementTree.fromstring(figure(measured, slopes))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    circles = root.findall("{*}circle")
    assert len(circles) == 2 * sum(len(factor.values) for factor in FACTORS.values()) + 2  # and the legend's
    assert all(0 < float(c.attrib["cx"]) < width and 0 < float(c.attrib["cy"]) < height for c in circles)
    dashes = {path.attrib["stroke-dasharray"] for path in root.findall("{*}path") if "stroke-dasharray" in path.attrib}
    assert len(dashes) == 2


def test_written_files_can_be_drawn_again(measured, tmp_path, monkeypatch, capsys):
    output = tmp_path / "sub" / "growth.md"
    growth.write(measured, "About.", output)
    first = {path.suffix: path.read_text() for path in output.parent.iterdir()}
    assert set(first) == {".md", ".svg", ".json"}
    monkeypatch.setattr(sys, "argv", ["growth.py", "--redraw", "--output", str(output)])
    growth.main()
    assert {path.suffix: path.read_text() for path in output.parent.iterdir()} == first
    assert capsys.readouterr().out == first[".md"]


def test_a_measured_step_has_exactly_the_length_asked_for():
    shape = Shape(questions=2, completions=2, answer_tokens=5, prompt_tokens=4)
    found = growth.measure(*growth.build(llama(), shape), shape)
    assert found["tokens"] == 2 * 2 * 5
    assert all(math.isfinite(found[quantity]) and found[quantity] >= 0 for quantity in QUANTITIES)
    assert min(found["sampling_seconds"], found["training_seconds"]) > 0
