"""A study's figures and comparisons: closed forms, invariances, and studies with little or nothing to go by."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_up_study import run_result, study

from negaware.estimates import clustered_estimate, student_t
from negaware.studies.components import crossed_change, interval
from negaware.studies.results import StudyResults
from negaware.studies.statistics import (
    area,
    before_training,
    comparisons,
    holm,
    improvement,
    seed_mean,
    variant_figures,
)


def table(mean: float, seeds: int = 5, problems: int = 60, of: int = 0) -> list[list[float]]:
    """Shares of 4 answers, the seeds a little apart."""
    generator = np.random.default_rng(of)
    rates = generator.beta(8 * mean, 8 * (1 - mean), problems)
    moved = (rates + 0.02 * generator.standard_normal((seeds, 1))).clip(0, 1)
    return (np.random.default_rng(of + 1).binomial(4, moved) / 4).tolist()


def test_a_difference_is_paired_by_seed_and_problem():
    """Its interval is that of the table of differences, whatever the accuracies themselves are."""
    first, second = table(0.5), table(0.6)
    (found,) = comparisons(study({"rft": first, "nft": second}))
    low, high = interval(crossed_change(np.array(second) - np.array(first)))
    assert found.change.value == pytest.approx(np.mean(second) - np.mean(first))
    assert (found.change.low, found.change.high) == pytest.approx((low, high))
    assert (found.variant, found.reference, found.measure, found.seeds) == ("nft", "rft", "avg_at_4", (0, 1, 2, 3, 4))
    assert found.verdict == "better"


def test_swapping_the_variants_turns_the_signs():
    tables = {"rft": table(0.5), "nft": table(0.6)}
    (one,) = comparisons(study(tables, margins={"avg_at_4": 0.05}))
    (other,) = comparisons(replace(study(tables, margins={"avg_at_4": 0.05}), reference="nft"))
    assert (other.change.value, other.change.low, other.change.high) == pytest.approx(
        (-one.change.value, -one.change.high, -one.change.low)
    )
    assert (other.p_value, other.equivalence, other.noise) == pytest.approx((one.p_value, one.equivalence, one.noise))
    assert other.improvement.value == pytest.approx(1 - one.improvement.value)
    assert (other.improvement.low, other.improvement.high) == pytest.approx(
        (1 - one.improvement.high, 1 - one.improvement.low)
    )
    assert (one.verdict, other.verdict) == ("better", "worse")


def test_the_order_of_runs_and_problems_does_not_matter():
    whole = study({"rft": table(0.5), "nft": table(0.55)})
    runs = tuple(
        replace(run, after={name: dict(reversed(values.items())) for name, values in run.after.items()})
        for run in reversed(whole.runs)
    )
    (one,), (other,) = comparisons(whole), comparisons(replace(whole, runs=runs))
    assert (one.change.low, one.p_value, one.seed_fraction) == pytest.approx(
        (other.change.low, other.p_value, other.seed_fraction)
    )


def test_questions_asked_twice_count_once():
    first, second = table(0.5, problems=30), table(0.6, problems=30)
    asked = [f"q{index}" for index in range(30)]
    once = comparisons(study({"rft": first, "nft": second}))[0]
    twice_tables = {"rft": [2 * row for row in first], "nft": [2 * row for row in second]}
    twice = comparisons(study(twice_tables, questions=2 * asked))[0]
    apart = comparisons(study(twice_tables))[0]
    assert (twice.change.low, twice.change.high) == pytest.approx((once.change.low, once.change.high))
    assert (twice.change.num_problems, twice.change.num_questions) == (60, 30)
    assert apart.change.high - apart.change.low < twice.change.high - twice.change.low


def test_only_seeds_that_both_have_are_compared():
    first, second = table(0.5), table(0.6)
    seeds = {"rft": [0, 1, 2, 3, 4], "nft": [1, 2, 3, 4]}
    found = comparisons(study({"rft": first, "nft": second[1:]}, seeds=seeds))[0]
    common = comparisons(study({"rft": first[1:], "nft": second[1:]}))[0]
    assert found.seeds == (1, 2, 3, 4)
    assert found.change == common.change
    assert not comparisons(study({"rft": first[:1], "nft": second[1:2]}, seeds={"rft": [0], "nft": [1]}))


def test_all_seeds_and_all_variants_equal_are_no_certainty():
    """The same in every seed: no interval without a width, no p of 0, and no "matches" within less than the noise."""
    right, margins = [[1.0] * 100] * 5, {"avg_at_4": 0.01}
    whole = study({"rft": right, "nft": right}, margins=margins)
    (found,) = comparisons(whole)
    assert found.change.value == 0
    assert found.change.high == -found.change.low == pytest.approx(student_t(101) * math.sqrt(2 / 101 / 102))
    assert (found.p_value, found.verdict) == (pytest.approx(1), "undecided")
    assert 0.01 < found.noise < 0.03
    (wider,) = comparisons(replace(whole, margins={"avg_at_4": 0.03}))
    assert wider.verdict == "matches"
    for one in variant_figures(whole):
        assert one.accuracy["avg_at_4"].high == 1
        assert 0.95 < one.accuracy["avg_at_4"].low < 0.97


def test_one_problem_tells_nothing():
    (found,) = comparisons(study({"rft": [[0.25], [0.5], [0.25]], "nft": [[1.0], [0.75], [0.75]]}))
    assert (found.change.low, found.change.high, found.verdict) == (-1, 1, "undecided")
    figures = variant_figures(study({"rft": [[0.25], [0.5], [0.25]]}))
    assert (figures[0].accuracy["avg_at_4"].low, figures[0].accuracy["avg_at_4"].high) == (0, 1)


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_prove_nothing(seeds):
    whole = study({"rft": table(0.2, seeds), "nft": table(0.9, seeds)}, margins={"avg_at_4": 0.5})
    (found,) = comparisons(whole)
    assert found.change.value > 0.5
    assert (found.p_value, found.p_holm, found.equivalence, found.equivalence_holm, found.verdict) == (None,) * 5


def test_one_seed_has_the_interval_of_its_problems():
    row = table(0.5)[0]
    figures = variant_figures(study({"rft": [row]}))[0].accuracy["avg_at_4"]
    single = clustered_estimate(row, 4)
    assert (figures.value, figures.low, figures.high) == pytest.approx((single.value, single.low, single.high))


def test_seeds_far_apart_widen_an_accuracy_and_it_stays_inside():
    alike = variant_figures(study({"rft": [[0.5] * 50 + [1.0] * 50] * 3}))[0].accuracy["avg_at_4"]
    apart = variant_figures(study({"rft": [[0.0] * 100, [1.0] * 100, [1.0] * 100]}))[0].accuracy["avg_at_4"]
    assert alike.high - alike.low < 0.2
    assert apart.high - apart.low > 0.8
    assert 0 <= apart.low < apart.high <= 1


def test_before_training_is_one_measurement():
    before = before_training(study({"rft": table(0.5), "nft": table(0.6)}))
    assert [*before] == [None]
    found, expected = before[None]["avg_at_4"], clustered_estimate([0.25] * 60, 4)
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert before_training(StudyResults("none", ("rft",), (0,), "rft", ())) == {}


def test_variants_that_began_otherwise_have_each_their_own_figure_before_training():
    """Of a variant whose runs themselves began otherwise, it is that of its seeds."""
    whole = study({"rft": table(0.5, 2), "warm": table(0.6, 2), "apart": table(0.6, 2)})
    began = {"rft": [0.0, 0.0], "warm": [0.75, 0.75], "apart": [0.25, 0.75]}
    runs = tuple(
        replace(run, before={"avg_at_4": dict.fromkeys(run.after["avg_at_4"], began[run.variant][run.seed])})
        for run in whole.runs
    )
    before = before_training(replace(whole, runs=runs))
    assert {name: found["avg_at_4"].value for name, found in before.items()} == {"rft": 0, "warm": 0.75, "apart": 0.5}
    widths = {name: found["avg_at_4"].high - found["avg_at_4"].low for name, found in before.items()}
    assert widths["apart"] > 0.9 > 0.2 > widths["warm"]


def test_the_same_ids_of_other_questions_are_refused():
    """An id may be a file's name and a row: two files of the same name, or one that was edited in between."""
    runs = [run_result(name, 0, [1.0, 0.5], ["1+1", last]) for name, last in (("rft", "2+2"), ("nft", "2+3"))]
    with pytest.raises(ValueError, match=r"nft \(seed 0\) and rft \(seed 0\) were measured on different problems"):
        comparisons(StudyResults("bad", ("rft", "nft"), (0,), "rft", tuple(runs)))


def test_different_problems_are_refused():
    runs = (run_result("rft", 0, [1.0, 0.5]), run_result("nft", 0, [1.0, 0.5, 0.0]))
    with pytest.raises(ValueError, match=r"nft \(seed 0\) and rft \(seed 0\) were measured on different problems"):
        comparisons(StudyResults("bad", ("rft", "nft"), (0,), "rft", runs))


def test_a_study_without_runs_says_nothing():
    nothing = StudyResults("none", ("rft", "nft"), (0,), "rft", ())
    assert (variant_figures(nothing), comparisons(nothing)) == ([], [])


def test_holms_correction():
    """Of 0.01, 0.04, 0.03 and 0.005: the smallest times 4, then 3, 2 and 1; 0.03 · 2 = 0.06 holds for 0.04 too."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


def test_holm_corrects_for_the_variants_of_a_measure():
    tables = {"rft": table(0.5), "nft": table(0.56), "grpo": table(0.5, of=2), "one seed": table(0.9, 1)}
    found = {one.variant: one for one in comparisons(study(tables, margins={"avg_at_4": 0.2}))}
    ps = [found[name].p_value for name in ("nft", "grpo")]
    assert [found[name].p_holm for name in ("nft", "grpo")] == pytest.approx(holm(ps))
    assert min(found["nft"].p_holm, found["grpo"].p_holm) == pytest.approx(2 * min(ps))
    equivalences = [found[name].equivalence for name in ("nft", "grpo")]
    assert [found[name].equivalence_holm for name in ("nft", "grpo")] == pytest.approx(holm(equivalences))
    assert found["one seed"].p_holm is None


def test_the_probability_of_improvement():
    """Of 3 × 3 pairs 6 better and a tie; the ends solve |θ − share| = t √V(θ) (Newcombe's method 5)."""
    found = improvement([0.5, 0.6, 0.7], [0.4, 0.5, 0.65])
    assert found.value == pytest.approx((2 - 0.5 + 2 + 3) / 9)
    for end in (found.low, found.high):
        shape = (1 - end) / (2 - end) + end / (1 + end)
        assert abs(end - found.value) == pytest.approx(student_t(4) * math.sqrt(end * (1 - end) * (1 + 2 * shape) / 9))
    always = improvement([0.5, 0.6, 0.7], [0.1, 0.2, 0.3])
    assert (always.value, always.high) == (1, 1)
    assert 0.2 < always.low < 0.5 < improvement(range(10, 20), range(10)).low  # three of three happen by chance
    assert (improvement([1.0], [0.0]).low, improvement([1.0], [0.0]).high) == (0, 1)


def test_figures_of_a_run_are_means_over_seeds():
    """Entropy and length of the last tenth of the steps; the curve 0.1, 0.2, 0.3 has the area 0.2."""
    whole = study({"rft": table(0.5, 3)})
    means = variant_figures(whole)[0].means
    assert area(whole.runs[0]) == pytest.approx(0.2)
    assert means["area"].value == pytest.approx(0.21)
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert (means["area"].low, means["area"].high) == pytest.approx((0.21 - half, 0.21 + half), rel=1e-4)
    assert means["entropy"].value == pytest.approx((1 / 20 + 1 / 21) / 2 + 0.01)
    assert means["answer_tokens"] == seed_mean([39.5] * 3)
    assert means["answer_tokens"].low is None  # all equal: no spread to go by
    assert means["informative_share"].value == pytest.approx(0.51)
    assert means["processor_seconds"].value == pytest.approx(110)


def test_the_area_is_over_steps_not_over_evaluations():
    lines = ({"step": 0.0, "evaluation/accuracy": 0.0}, {"step": 2.0, "evaluation/accuracy": 0.5}, {"step": 3.0})
    run = run_result("rft", 0, [1.0], metrics=(*lines, {"step": 10.0, "evaluation/accuracy": 0.5}))
    assert area(run) == pytest.approx((2 * 0.25 + 8 * 0.5) / 10)
    assert area(replace(run, metrics=lines[:1])) is None


def test_a_figure_that_a_run_lacks_has_no_mean():
    runs = [run_result("rft", seed, [0.5], processor_seconds=None if seed else 1.0) for seed in range(3)]
    means = variant_figures(StudyResults("s", ("rft",), (0, 1, 2), "rft", tuple(runs)))[0].means
    assert "processor_seconds" not in means
    assert means["train_seconds"].value == 61
    assert seed_mean([5.0, 0.0, 0.1]).low == 0  # never below


def test_an_interval_of_a_share_ends_at_1():
    """Where a few steps or a curve are all but full; a time's interval has no such end."""
    shares = ({"step": 1.0, "rollout/informative_share": 1.0}, {"step": 1.0, "rollout/informative_share": 0.7})
    curves = [[0.9, 1.0], [0.6, 0.9]]
    runs = [
        run_result("rft", seed, [0.5], metrics=(line, *({"step": s, "evaluation/accuracy": curve[s]} for s in (0, 1))))
        for seed, (line, curve) in enumerate(zip(shares, curves, strict=True))
    ]
    means = variant_figures(StudyResults("s", ("rft",), (0, 1), "rft", tuple(runs)))[0].means
    assert (means["informative_share"].value, means["informative_share"].high) == (pytest.approx(0.85), 1)
    assert (means["area"].value, means["area"].high) == (pytest.approx(0.85), 1)
    assert means["train_seconds"].high > 60.5
