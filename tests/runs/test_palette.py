"""The looks of variants: told apart without some colours, or without all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from negaware.runs.mean_curve import MeanPoint, mean_curve
from negaware.runs.palette import DARK, LIGHT, look

# Machado, Oliveira and Fernandes (2009), severity 1: what is left of linear RGB without red, and without green.
SIGHT = {
    "all": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    part = XYZ @ rgb.clip(0, 1) / XYZ.sum(1)
    x, y, z = np.where(part > 0.008856, np.cbrt(part), 7.787 * part + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("colors", "ground"), [(LIGHT, "#ffffff"), (DARK, "#19212a")])
def test_any_two_colours_differ_for_all_eyes_and_stand_out_from_the_ground(colors, ground):
    for name, sight in SIGHT.items():
        seen = [lab(np.array(sight) @ linear(color)) for color in colors]
        assert min(np.linalg.norm(one - other) for one, other in itertools.combinations(seen, 2)) >= 14.9, name
    light = [XYZ[1] @ linear(color) + 0.05 for color in (*colors, ground)]
    assert min(max(one, light[-1]) / min(one, light[-1]) for one in light[:-1]) >= 3


def test_neighbours_differ_in_colour_dash_and_mark():
    looks = [look(number) for number in range(504)]
    assert len(set(looks)) == 504
    for one, other in itertools.pairwise(looks):
        assert not {one.light, one.dark, one.symbol, one.marker, one.glyph} & {other.light, other.dark, other.symbol}
        assert one.dashes != other.dashes


def test_a_mean_is_of_the_steps_that_all_runs_have_and_a_share_stays_one():
    runs = [
        [{"step": 0, "share": 0.9}, {"step": 1, "share": 0.5}, {"step": 2, "share": 0.5}],
        [{"step": 0, "share": 1.0}, {"step": 1, "share": None}, {"step": 2, "share": 0.7}, {"step": 3, "share": 1.0}],
    ]
    assert mean_curve(runs, "share") == [MeanPoint(0, pytest.approx(0.95)), MeanPoint(2, pytest.approx(0.6))]
    first, second = mean_curve([*runs, [{"step": 0, "share": 1.0}, {"step": 2, "share": 0.6}]], "share", fraction=True)
    half = 4.302653 * 0.1 / 3**0.5  # Student's t of two degrees at 97.5 %
    assert (second.low, second.high) == pytest.approx((0.6 - half, 0.6 + half), rel=1e-5)
    assert first.high == 1.0
    assert mean_curve([*runs, [{"step": 0, "share": 1.0}]], "share")[0].high > 1
    assert mean_curve([], "share") == mean_curve(runs, "loss") == []
