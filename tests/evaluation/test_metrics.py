import itertools
import math
import random
import statistics

import pytest

from negaware.evaluation.metrics import (
    Z_95,
    Vote,
    avg_at_k,
    clustered_estimate,
    maj_at_k,
    pass_at_k,
    wilson_interval,
)


def brute_force_pass(num_correct: int, num_completions: int, k: int) -> float:
    answers = [True] * num_correct + [False] * (num_completions - num_correct)
    subsets = list(itertools.combinations(answers, k))
    return sum(map(any, subsets)) / len(subsets)


@pytest.mark.parametrize("num_completions", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(num_completions: int) -> None:
    counts = list(range(num_completions + 1))
    for k in range(1, num_completions + 1):
        expected = statistics.fmean(brute_force_pass(count, num_completions, k) for count in counts)
        assert pass_at_k(counts, num_completions, k).value == pytest.approx(expected, abs=1e-12)


def test_pass_at_1_is_avg_at_k_and_pass_at_all_is_any() -> None:
    counts = [0, 1, 3, 4]
    assert pass_at_k(counts, 4, 1) == avg_at_k(counts, 4)
    assert avg_at_k(counts, 4).value == 8 / 16
    assert pass_at_k(counts, 4, 4).value == 3 / 4


def test_pass_at_k_stays_exact_for_many_answers() -> None:
    # C(1000 − 1, 512) / C(1000, 512) = 488 / 1000
    assert pass_at_k([1], 1000, 512).value == pytest.approx(512 / 1000, abs=1e-15)


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_answers(k: int) -> None:
    with pytest.raises(ValueError, match=f"got k={k}"):
        pass_at_k([1], 4, k)


def votes(values: str, right: str) -> list[Vote]:
    """One vote a letter; `.` abstains."""
    return [Vote(None if value == "." else value, value == right) for value in values]


@pytest.mark.parametrize(
    ("values", "solved"),
    [
        ("aab", True),
        ("bba", False),
        ("ab", True),  # a tie: the value given first
        ("ba", False),
        ("bccba", False),
        ("baab", False),
        ("abba", True),
        ("....a", True),  # abstentions don't outvote
        ("..", False),
        ("bca.a", True),
    ],
)
def test_maj_at_k_follows_the_most_frequent_value(values: str, solved: bool) -> None:
    assert maj_at_k([votes(values, right="a")]).value == solved


def test_maj_at_k_is_a_share_of_problems() -> None:
    estimate = maj_at_k([votes("aab", "a"), votes("bba", "a"), votes("aaa", "a"), votes("bab", "a")])
    assert (estimate.value, estimate.num_problems) == (0.5, 4)


def test_single_answers_get_wilsons_interval() -> None:
    estimate = avg_at_k([1] * 8 + [0] * 2, 1)
    # The textbook's figures for 8 of 10.
    assert (estimate.low, estimate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    # Its ends are where the normal test just rejects: |p̂ − p| = z √(p (1 − p) / n).
    for end in wilson_interval(0.8, 10):
        assert abs(0.8 - end) == pytest.approx(Z_95 * math.sqrt(end * (1 - end) / 10), abs=1e-12)


@pytest.mark.parametrize("num_problems", [1, 2, 30, 1000])
def test_intervals_stay_inside_and_keep_their_width(num_problems: int) -> None:
    for value in (0.0, 0.25, 1.0):
        estimate = clustered_estimate([value] * num_problems, 4)
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.high - estimate.low > 1 / (num_problems + 4)


def test_equal_answers_to_a_problem_tell_no_more_than_one() -> None:
    once = avg_at_k([1, 0, 0, 1, 1, 0, 1], 1)
    sixteen_times = avg_at_k([16, 0, 0, 16, 16, 0, 16], 16)
    assert sixteen_times == once


def test_intervals_cover_the_truth_with_clustered_answers() -> None:
    """Problems differ in difficulty (Beta), K = 4 answers each; 95 % intervals must hold the true mean so often.
    An interval that took the answers for independent would cover 78 to 88 %."""
    generator = random.Random(0)
    for (alpha, beta), num_problems in itertools.product([(0.3, 0.7), (0.2, 2.0)], [40, 200]):
        truth = alpha / (alpha + beta)
        num_trials, covered, naive = 600, 0, 0
        for _ in range(num_trials):
            rates = [generator.betavariate(alpha, beta) for _ in range(num_problems)]
            counts = [sum(generator.random() < rate for _ in range(4)) for rate in rates]
            estimate = avg_at_k(counts, 4)
            covered += estimate.low <= truth <= estimate.high
            low, high = wilson_interval(estimate.value, 4 * num_problems)
            naive += low <= truth <= high
        assert covered / num_trials == pytest.approx(0.95, abs=0.025)
        assert naive / num_trials < 0.9


def test_no_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        avg_at_k([], 4)
