"""Variance components: an analysis of variance by hand, what must not change it, and tables of next to nothing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from negaware.estimates import paired_change, student_t
from negaware.studies.components import crossed_change, crossed_mean, equivalence_p, interval, quantile, two_sided_p

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from study_coverage import STRUCTURES, coverage, satterthwaite

# Means of rows and columns 2, 4, 6; sums of squares 24, 24 and 6 on 2, 2 and 4 degrees.
TABLE = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 7.0], [3.0, 7.0, 8.0]])


def test_an_analysis_of_variance_by_hand():
    mean = crossed_mean(TABLE)
    assert (mean.value, mean.seed, mean.problem, mean.left) == pytest.approx((4, 12, 12, 1.5))
    assert mean.components() == pytest.approx((3.5, 3.5, 1.5))
    assert mean.variance == pytest.approx(22.5 / 9)
    assert mean.seed_fraction == pytest.approx(12 / 22.5)


def test_the_quantile_is_cochran_and_coxs():
    """Seeds and problems have Student's t each, weighed by the variance: more than Satterthwaite's in all."""
    unequal = crossed_mean(np.hstack([TABLE, TABLE + 1]))
    share = 2 * 12 / float(2 * 12 + max(unequal.problem, unequal.left) - unequal.left)
    assert unequal.seed_fraction == pytest.approx(share)
    expected = share * stats.t.ppf(0.975, 2) + (1 - share) * stats.t.ppf(0.975, 5)
    assert quantile(unequal, 0.025) == pytest.approx(expected)
    seeds_alone = crossed_mean(np.array([[0.1] * 9, [0.5] * 9, [0.6] * 9]))
    assert seeds_alone.variance == pytest.approx(np.var([0.1, 0.5, 0.6], ddof=1) / 3)
    assert quantile(seeds_alone, 0.025) == pytest.approx(stats.t.ppf(0.975, 2))
    problems_alone = crossed_mean(np.tile([0.1, 0.5, 0.6, 0.9], (3, 1)))
    assert quantile(problems_alone, 0.025) == pytest.approx(stats.t.ppf(0.975, 3))


def test_satterthwaites_degrees_by_hand():
    """22.5² / (144/2 + 144/2 + 2.25/4) = 3.502: what ours is compared with, and wider than."""
    low, high = satterthwaite(TABLE)
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 22.5**2 / 144.5625) * 2.5**0.5)
    ours = interval(crossed_mean(TABLE))
    assert ours[0] < low < high < ours[1]


def test_a_variance_below_zero_counts_as_zero():
    """Means of all seeds and of all problems are equal: A = B = 0, E = 2, and the variance is E / SC, not −E / SC."""
    mean = crossed_mean([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]])
    assert mean.variance == pytest.approx(2 / 6)
    assert mean.seed_fraction == 0
    assert mean.components() == pytest.approx((0, 0, 2))


def test_tables_one_by_one_or_all_at_once():
    tables = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    whole, one = crossed_mean(tables), crossed_mean(tables[1, 2])
    for field in ("value", "variance", "seed_fraction", "seed", "problem", "left"):
        assert getattr(whole, field).shape == (2, 3)
        assert getattr(whole, field)[1, 2] == pytest.approx(getattr(one, field))


def test_the_order_of_seeds_and_problems_does_not_matter():
    generator = np.random.default_rng(1)
    table = generator.normal(size=(4, 30)).clip(-1, 1)
    mean, other = crossed_change(table), crossed_change(table[generator.permutation(4)][:, generator.permutation(30)])
    turned = crossed_change(-table)
    for field in ("value", "variance", "seed_fraction"):
        assert getattr(other, field) == pytest.approx(getattr(mean, field))
        assert getattr(turned, field) == pytest.approx(getattr(mean, field) * (-1 if field == "value" else 1))


def test_clusters_of_one_size_are_a_table_of_their_means():
    means = np.random.default_rng(2).uniform(size=(3, 8))
    mean, of_pairs = crossed_mean(means), crossed_mean(2 * means, [2] * 8)
    assert (mean.value, mean.variance, mean.seed_fraction) == pytest.approx(
        (of_pairs.value, of_pairs.variance, of_pairs.seed_fraction)
    )


def test_one_seed_is_a_change_between_two_measurements():
    """`paired_change` of the same differences, its clusters of unequal sizes too; two degrees more for two problems."""
    before, after = np.random.default_rng(4).integers(0, 5, size=(2, 60)) / 4
    asked = [f"q{index % 40}" for index in range(60)]
    change = paired_change(before.tolist(), after.tolist(), asked)
    differences = after - before
    sums = [differences[index] + (differences[index + 40] if index < 20 else 0) for index in range(40)]
    mean = crossed_change([sums], [2] * 20 + [1] * 20)
    assert mean.value == pytest.approx((change.low + change.high) / 2)
    assert np.sqrt(mean.variance) * student_t(39) == pytest.approx((change.high - change.low) / 2)
    assert quantile(mean, 0.025) == pytest.approx(stats.t.ppf(0.975, 41))


def test_without_seeds_or_problems_to_go_by():
    one_seed, one_problem, one = crossed_mean([[0.0, 1.0, 0.5]]), crossed_mean([[0.0], [1.0]]), crossed_mean([[0.3]])
    for mean, variance, degrees in ((one_seed, 0.25 / 3, 2), (one_problem, 0.5 / 2, 1)):
        assert mean.variance == pytest.approx(variance)
        assert quantile(mean, 0.025) == pytest.approx(stats.t.ppf(0.975, degrees))
        assert two_sided_p(mean) == pytest.approx(2 * stats.t.sf(mean.value / variance**0.5, degrees))
    assert np.isnan(one_seed.components()[0])
    assert np.isnan(one_problem.components()[1])
    assert np.isnan(one.variance)
    assert interval(one) == (-np.inf, np.inf)
    assert (two_sided_p(one), equivalence_p(one, 0.1)) == (1, 0.5)


def test_nothing_changed_anywhere_still_has_an_interval():
    """The two added problems alone: variance 2 / (n + 1) / (n + 2), and no seed knows better."""
    mean = crossed_change(np.zeros((5, 50)))
    assert (mean.value, mean.variance) == pytest.approx((0, 2 / 51 / 52))
    assert two_sided_p(mean) == pytest.approx(1)
    assert crossed_mean(np.zeros((5, 50))).variance == 0
    assert two_sided_p(crossed_mean(np.zeros((5, 50)))) == 1


def test_p_values_are_those_of_the_interval():
    """The two-sided one is 5 % at an end of the 95 % interval; that of equivalence at one of the 90 % interval."""
    mean = crossed_change(np.random.default_rng(3).normal(0.1, 0.3, size=(4, 40)).clip(-1, 1))
    for end in interval(mean):
        assert two_sided_p(mean, float(end)) == pytest.approx(0.05)
    _, high = interval(mean, 0.05)
    assert equivalence_p(mean, float(high)) == pytest.approx(0.05)
    assert equivalence_p(mean, float(abs(mean.value))) == pytest.approx(0.5)
    alone = crossed_mean(np.array([[0.02] * 9, [0.05] * 9, [0.01] * 9]))
    for margin in (0.01, 0.1):  # the mean is 0.0267: beyond the one, within the other
        errors = (margin - float(alone.value)) / float(alone.variance) ** 0.5
        assert equivalence_p(alone, margin) == pytest.approx(stats.t.sf(errors, 2))


@pytest.mark.parametrize("seeds", [3, 10])
def test_a_studys_intervals_cover(seeds):
    """95 % hold the true difference and accuracy at least 93 % of the time, less what 300 trials may miss (3 sd)."""
    bound = 0.93 - 3 * (0.93 * 0.07 / 300) ** 0.5
    for name in ("seeds 0.3", "seeds 1", "hard", "flips", "U-shaped"):
        generator = np.random.default_rng(seeds)
        for k, (difference, _, accuracy, _) in coverage(generator, STRUCTURES[name], (300, seeds, 100), (1, 4)).items():
            assert min(difference, accuracy) >= bound, (name, k)
