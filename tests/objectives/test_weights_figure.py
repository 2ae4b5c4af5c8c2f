"""The figure of all gradient weights is what its script draws."""

import re
import sys
from pathlib import Path

import pytest

from negaware.objectives import OBJECTIVES

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from gradient_weight_all import FIGURE, LINES, drawing

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def test_the_committed_figure_is_the_scripts():
    """All but coordinates to the letter; those to the last digit written, which processors may round otherwise."""
    committed, drawn = FIGURE.read_text(encoding="utf-8"), drawing()
    assert NUMBER.sub("#", drawn) == NUMBER.sub("#", committed), "python benchmarks/gradient_weight_all.py"
    found, expected = (list(map(float, NUMBER.findall(text))) for text in (drawn, committed))
    assert found == pytest.approx(expected, abs=0.11), "python benchmarks/gradient_weight_all.py"


def test_it_has_every_objective():
    assert sorted(name for name, *_ in LINES) == sorted(OBJECTIVES)
