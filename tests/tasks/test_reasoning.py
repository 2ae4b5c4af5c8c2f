import pickle
import sys

import pytest

from negaware.tasks.options import ReasoningGymOptions
from negaware.tasks.reasoning import generate, score, tagged_answer
from negaware.types import Problem


def options(**rest: object) -> ReasoningGymOptions:
    return ReasoningGymOptions(**{"name": "chain_sum", **rest})


def questions(problems: list[Problem]) -> set[str]:
    return {problem.question for problem in problems}


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("reasoning_gym")


def test_splits_share_no_question_though_their_seeds_are_the_same() -> None:
    # One-digit sums of two terms: so few that two independent draws would all but coincide.
    small = {"parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    train = generate(options(num_problems=500, **small))
    test = generate(options(num_problems=25, split="test", **small))
    other = generate(options(num_problems=25, split="test", seed=5, **small))
    assert questions(train).isdisjoint(questions(test) | questions(other))
    assert len(questions(test)) == 25
    assert questions(test) & questions(other)  # the space is small enough for the claim to be tested


def test_problems_follow_from_the_seed() -> None:
    assert generate(options(num_problems=20, seed=1)) == generate(options(num_problems=20, seed=1))
    near = generate(options(num_problems=20, seed=2))
    assert questions(near).isdisjoint(questions(generate(options(num_problems=20, seed=1))))
    assert len({problem.id for problem in near}) == 20


def test_right_is_a_full_score() -> None:
    problem = generate(options(num_problems=1))[0]
    assert score(problem.answer, problem)
    # The library gives a part of the score for an answer among other words.
    assert not score(f"it is {problem.answer} or so", problem)
    assert not score("", problem)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I think <answer>1</answer>, no: <answer>\n2 </answer>.", "2"),
        (" 2\n", "2"),
        ("<answer>1</answer> or <answer>2", "1"),
        ("<answer>1 0\n0 1</answer>", "1 0\n0 1"),
        ("2</answer>", "2"),
        ("<answer>" * 200_000 + "2</answer>", "2"),
    ],
)
def test_the_last_tag_holds_the_answer(text: str, answer: str) -> None:
    assert tagged_answer(text) == answer


def test_problems_cross_process_borders_with_what_their_scorer_needs() -> None:
    for name in ("chain_sum", "countdown", "sudoku", "word_ladder"):
        problem = generate(options(name=name, num_problems=1, split="test"))[0]
        copy = pickle.loads(pickle.dumps(problem))
        assert score(problem.answer, copy), name


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ({"name": "chan_sum"}, "no data set 'chan_sum'; did you mean 'chain_sum'?"),
        ({"name": "qqqq"}, r"no data set 'qqqq' \(it has ab, acre"),
        ({"parameters": {"terms": 2}}, "refuses its parameters .*'terms'"),
        ({"parameters": {"min_terms": -1}}, "min_terms must be positive"),
        (
            {"split": "test", "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}},
            "num_problems asks for 1000; ask for fewer",
        ),
    ],
)
def test_what_the_library_cannot_give_is_refused(rest: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(options(**rest))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match=r"pip install 'negaware\[reasoning-gym\]'"):
        generate(options())
