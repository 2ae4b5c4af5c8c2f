import itertools
import statistics

import pytest

from negaware.estimates import clustered_estimate
from negaware.evaluation.metrics import Vote, avg_at_k, maj_at_k, pass_at_k


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
    assert estimate == clustered_estimate([1.0, 0.0, 1.0, 0.0])  # as sure as of one answer a problem
    assert maj_at_k([votes("aab", "a")] * 4) == clustered_estimate([1.0] * 4)


def test_no_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        avg_at_k([], 4)


def test_repeated_questions_are_one_cluster_in_every_figure() -> None:
    """Five questions asked four times each: as wide as five, and no wider."""
    questions, counts = [n // 4 for n in range(20)], [2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0]
    for repeated, once in (
        (avg_at_k(counts, 2, questions), avg_at_k(counts[::4], 2)),
        (pass_at_k(counts, 2, 2, questions), pass_at_k(counts[::4], 2, 2)),
    ):
        assert (repeated.num_problems, repeated.num_questions) == (20, 5)
        assert repeated.value == once.value
        # Half an answer is a quarter of what it is among a quarter of the answers; the rest is the same.
        assert once.high - once.low - 0.15 < repeated.high - repeated.low < once.high - once.low
    majority = maj_at_k([votes("aab", "a"), votes("bba", "a"), votes("aab", "a")], ["q", "r", "q"])
    assert (majority.num_problems, majority.num_questions) == (3, 2)
