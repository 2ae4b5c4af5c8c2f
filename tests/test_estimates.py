"""Intervals: closed forms, what must not change them, how often they hold the truth (more: docs/evaluation.md)."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from negaware.estimates import Estimate, clustered_estimate, paired_change, student_t, wilson_interval

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from interval_coverage import SHAPES, paired_coverage, single_coverage

# Tables of Student's t at 97.5 %.
STUDENT_T = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 29: 2.04523, 99: 1.98422, 499: 1.96473}


def test_students_t() -> None:
    for degrees, expected in STUDENT_T.items():
        assert student_t(degrees) == pytest.approx(expected, rel=2e-3 if degrees < 5 else 1e-5)
    assert student_t(0) == math.inf


@pytest.mark.parametrize(
    ("degrees", "expected"), [(3, 3.178616995054061), (4, 2.775582224236797), (7, 2.3645753739501307)]
)
def test_students_t_is_the_handbooks_expansion_to_the_last_digit(degrees: int, expected: float) -> None:
    """Abramowitz and Stegun 26.7.5 in fractions: a wrong coefficient hides behind the expansion's own error."""
    assert student_t(degrees) == pytest.approx(expected, rel=1e-12)


def test_a_change_without_both_ends_is_shown_without() -> None:
    assert Estimate(0.04).points == Estimate(0.04, -0.1).points == Estimate(0.04, None, 0.1).points == "+4.0 points"
    assert Estimate(0.04, -0.012, 0.093).points == "+4.0 points [-1.2, +9.3]"
    assert str(Estimate(0.04, None, 0.1)) == str(Estimate(0.04, 0.01)) == "4.0%"
    assert str(Estimate(0.04, 0.01, 0.1)) == "4.0% [1.0%, 10.0%]"


def test_nothing_has_no_figure() -> None:
    with pytest.raises(ValueError, match="an estimate needs at least one problem"):
        clustered_estimate([])
    with pytest.raises(ValueError, match="a change needs at least one problem"):
        paired_change([], [])
    with pytest.raises(ValueError, match="zip"):
        paired_change([0.5], [0.5, 1.0])


def test_wilsons_interval_ends_where_the_test_just_rejects() -> None:
    low, high = wilson_interval(0.8, 10, 1.959964)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))  # the textbook's 8 of 10
    for end in (low, high):
        assert abs(0.8 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 10), abs=1e-7)


def test_single_answers_get_wilsons_interval_at_students_t() -> None:
    """|p̂ ± 1/2n − p| = t √(d p (1 − p) / n): n − 1 degrees, corrected for continuity, d hardly above n / (n − 1)."""
    estimate = clustered_estimate([1.0] * 34 + [0.0] * 55)
    share = 34 / 89
    spread = 89 * share * (1 - share)
    design = (spread * 89 / 88 + 0.25) / (spread + 0.25)
    for end, moved in ((estimate.low, share - 0.5 / 89), (estimate.high, share + 0.5 / 89)):
        assert abs(moved - end) == pytest.approx(student_t(88) * math.sqrt(design * end * (1 - end) / 89), abs=1e-12)


def test_the_variance_divides_by_n_minus_1() -> None:
    """Three questions at pass rates 0, 1/2 and 1 of many answers: s² = 1/4, not 1/6."""
    estimate = clustered_estimate([0.0, 0.5, 1.0], 10**9)
    design = (3 * 0.25 + 0.25) / (3 * 0.25 + 0.25)
    assert (estimate.low, estimate.high) == pytest.approx(wilson_interval(0.5, 3 / design, student_t(2)), abs=1e-8)


@pytest.mark.parametrize("num_problems", [1, 2, 30, 1000])
def test_intervals_stay_inside_and_keep_their_width(num_problems: int) -> None:
    for value in (0.0, 0.25, 1.0):
        estimate = clustered_estimate([value] * num_problems, 4)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > 1 / (num_problems + 4)
        change = paired_change([value] * num_problems, [value] * num_problems)
        assert -1 <= change.low < change.value == 0 < change.high <= 1
        assert change.high - change.low > 2 / (num_problems + 4)


def test_equal_answers_to_a_problem_tell_no_more_than_one() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    once, often = clustered_estimate(values, 1), clustered_estimate(values, 16)
    half_an_answer = 0.5 / 7
    assert 0 < often.low - once.low < half_an_answer
    assert 0 < once.high - often.high < half_an_answer


def test_repeated_questions_are_one_cluster() -> None:
    """Asked again and answered alike they bring nothing; of unequal sizes they bring less than their number."""
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    once, repeated = clustered_estimate(values, 10**9), clustered_estimate(values * 3, 10**9, list(range(6)) * 3)
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-8)
    assert (repeated.num_problems, repeated.num_questions) == (18, 6)
    change = paired_change([0.5] * 6, values)
    again = paired_change([0.5] * 18, values * 3, list(range(6)) * 3)
    assert (again.value, again.low, again.high) == pytest.approx((change.value, change.low, change.high))
    apart = paired_change([0.5] * 18, values * 3)
    assert apart.high - apart.low < 0.6 * (again.high - again.low)
    mostly_one = clustered_estimate([*values, *[1.0] * 94], 1, [*range(6), *["again"] * 94])
    assert mostly_one.num_questions == 7
    assert mostly_one.high - mostly_one.low > 0.8  # (Σ m)² / Σ m² = 1.13 questions
    for asked in (1, 3):
        assert clustered_estimate([0.25] * asked, 4, ["one"] * asked) == Estimate(0.25, 0.0, 1.0, asked, 1)


def test_a_change_has_students_interval_with_two_problems_more() -> None:
    """Differences 1, 0, 0, −1, ½ and the added 1 and −1: mean 1/14, variance of the mean 4.25/42 − (1/14)²/6."""
    change = paired_change([0, 0.5, 1, 1, 0.5], [1, 0.5, 1, 0, 1])
    half = student_t(4) * math.sqrt((4.25 - 7 * (0.5 / 7) ** 2) / (7 * 6))
    assert change.value == pytest.approx(0.1)
    assert (change.low, change.high) == (pytest.approx(0.5 / 7 - half), pytest.approx(0.5 / 7 + half))
    with pytest.raises(ValueError, match="shorter"):
        paired_change([0.0, 1.0], [1.0])


def test_pairing_sees_what_two_intervals_hide() -> None:
    """Of 100 problems 12 more are right, and none fewer: the two intervals overlap, the change is beyond chance."""
    before, after = [1.0] * 40 + [0.0] * 60, [1.0] * 52 + [0.0] * 48
    first, last = clustered_estimate(before), clustered_estimate(after)
    assert first.high > last.low
    assert paired_change(before, after).low > 0.03


def test_two_more_questions_stand_behind_a_change_however_often_each_was_asked() -> None:
    """20 questions, each asked twice, of which 5 rose: the interval's middle is 10 / (40 + 2 · 2)."""
    change = paired_change([0.0] * 40, [1.0] * 10 + [0.0] * 30, [index // 2 for index in range(40)])
    assert (change.low + change.high) / 2 == pytest.approx(10 / 44)
    assert change.high < 1


def test_no_interval_ends_above_1() -> None:
    assert max(wilson_interval(1.0, trials, 1.96)[1] for trials in range(1, 100)) == 1  # rounding would go beyond


@pytest.mark.parametrize(
    ("estimate", "words"),
    [
        (Estimate(0.5, 0.4, 0.6, 10, 10), "only 10 problems, so one of them is 10 points"),
        (Estimate(0.5, 0.4, 0.6, 30, 30), "only 30 problems, so one of them is 3.33 points"),
        (Estimate(0.5, 0.4, 0.6, 300, 30), "only 30 different questions"),
        (Estimate(0.5, 0.4, 0.6, 2, 2), "only 2 problems, so one of them is 50 points"),
        (Estimate(0.5, 0.4, 0.6, 1, 1), "only 1 problem, so one of them is 100 points"),
        (Estimate(0.5, 0.4, 0.6, 49, 49), "only 49 problems"),
        (Estimate(0.5, 0.4, 0.6, 50, 50), None),
        (Estimate(0.5), None),
    ],
)
def test_few_problems_carry_a_word_of_caution(estimate: Estimate, words: str | None) -> None:
    assert (estimate.caution or "").startswith(words or "")
    assert (estimate.caution is None) == (words is None)


def test_intervals_cover_the_truth() -> None:
    """95 % intervals hold the true mean at least that often, less what 400 trials may miss (3 standard deviations)."""
    generator = np.random.default_rng(0)
    for (n, k), shape in itertools.product([(10, 32), (30, 4), (100, 1), (100, 32)], SHAPES[::3]):
        assert single_coverage(generator, n, k, shape, 400)[0] >= 0.917, (n, k, shape)


def test_paired_intervals_cover_the_change() -> None:
    generator = np.random.default_rng(1)
    for (n, k), move in itertools.product([(30, 4), (100, 1), (100, 32)], ("same", "flip", "learn")):
        assert paired_coverage(generator, n, k, (0.3, 0.7), move, 400)[0] >= 0.917, (n, k, move)
