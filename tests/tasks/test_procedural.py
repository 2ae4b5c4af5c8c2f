import itertools
import operator
import re
from collections import Counter
from typing import get_args

import pytest

from negaware.tasks.options import ArithmeticForm, ArithmeticOptions
from negaware.tasks.procedural import arithmetic_problem, arithmetic_problems, canonical_form, split_of

FORMS = get_args(ArithmeticForm)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def parse(question: str) -> tuple[list[int], list[str]]:
    expression = re.fullmatch(r"What is (.+)\?", question).group(1)
    return [int(number) for number in re.findall(r"\d+", expression)], re.findall(r"[+*-]", expression)


def value_of(question: str) -> int:
    numbers, signs = parse(question)
    value = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        value = OPERATIONS[sign](value, number)
    return value


def reordered(question: str) -> set[str]:
    """Every way to write the question by swapping what commutes, worked out from its text alone."""
    (a, b, *rest), (sign, *signs) = parse(question)
    tail = "".join(f" {s} {n}" for s, n in zip(signs, rest, strict=True))
    same = {f"What is {a} {sign} {b}{tail}?"}
    if sign in "+*":
        same.add(f"What is {b} {sign} {a}{tail}?")
    return same


def whole(split: str, **options: object) -> list[str]:
    return [problem.question for problem in arithmetic_problems(ArithmeticOptions(split=split, **options))]


def is_asked(question: str) -> bool:
    return value_of(question) >= 0 and value_of(question) != parse(question)[0][-1]


LEFT_OUT = [(a, b, c) for a, b, c in itertools.product(range(2, 13), repeat=3) if a + b < c or a + b == 2 * c]


def test_the_splits_share_no_problem_in_any_order_and_make_up_the_whole_space() -> None:
    train, test = whole("train"), whole("test")
    space = {
        arithmetic_problem(form, operands).question
        for form in FORMS
        for operands in itertools.product(range(2, 13), repeat=3 if form == "add_subtract" else 2)
    }
    space = {question for question in space if is_asked(question)}
    assert len(space) == 2 * 11**2 + (11 * 12 // 2 - 5) + (11**3 - len(LEFT_OUT))  # 4 - 2 … 12 - 6 are five
    assert len(train) + len(test) == len(space)
    assert set(train) | set(test) == space
    train_in_any_order = set().union(*map(reordered, train))
    test_in_any_order = set().union(*map(reordered, test))
    assert train_in_any_order.isdisjoint(test_in_any_order)
    assert 0.28 < len(test) / len(space) < 0.38


def test_splits_of_different_ranges_and_seeds_are_apart_too() -> None:
    assert set(whole("train", low=0, high=20, seed=3)).isdisjoint(whole("test", low=2, high=12, seed=7))


def test_the_questions_last_number_is_never_its_answer() -> None:
    """Where an answer's last number counts, echoing the question would be right."""
    questions = [*whole("train", low=0), *whole("test", low=0)]
    assert {"What is 8 - 3?", "What is 5 + 0?", "What is 7 + 5 - 3?"} < set(questions)
    assert [question for question in questions if value_of(question) == parse(question)[0][-1]] == []


def test_the_answers_are_right() -> None:
    for problem in arithmetic_problems(ArithmeticOptions(split="train")):
        assert int(problem.answer) == value_of(problem.question)
    assert arithmetic_problem("add_subtract", (7, 5, 3)).question == "What is 7 + 5 - 3?"
    assert arithmetic_problem("subtract", (5, 7)).answer == "-2"


def test_canonical_form_sorts_only_what_commutes() -> None:
    assert canonical_form("add", (7, 5)) == canonical_form("add", (5, 7))
    assert canonical_form("multiply", (12, 3)) == canonical_form("multiply", (3, 12))
    assert canonical_form("subtract", (7, 5)) != canonical_form("subtract", (5, 7))
    assert canonical_form("add_subtract", (7, 5, 3)) == canonical_form("add_subtract", (5, 7, 3))
    assert canonical_form("add_subtract", (7, 5, 3)) != canonical_form("add_subtract", (7, 3, 5))


def test_split_of_is_pinned() -> None:
    """Another hash would move problems that a trained model has seen into the held-out set."""
    sums = itertools.combinations_with_replacement(range(2, 7), 2)
    assert [f"{a}+{b}" for a, b in sums if split_of(f"add:{a}:{b}") == "test"] == HELD_OUT


HELD_OUT = ["2+2", "2+4", "3+3", "3+4", "3+5", "4+4"]


def test_test_problems_are_distinct_and_forms_come_in_turn() -> None:
    questions = whole("test", num_problems=64, seed=1)
    assert len(set(questions)) == 64
    signs = Counter("".join(parse(question)[1]) for question in questions)
    assert signs == {"+": 16, "-": 16, "*": 16, "+-": 16}


def test_train_repeats_when_asked_for_more_than_there_are() -> None:
    questions = whole("train", low=2, high=4, num_problems=400)
    assert len(questions) == 400
    assert set(questions) == set(whole("train", low=2, high=4))
    sums = [question for question in questions if parse(question)[1] == ["+"]]
    counts = Counter(sums).values()
    assert max(counts) - min(counts) <= 1  # whole passes, each shuffled


def test_test_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"num_problems=400.*at most"):
        whole("test", low=2, high=4, num_problems=400)


def test_the_seed_decides_the_order() -> None:
    assert whole("test", seed=1) == whole("test", seed=1)
    assert whole("test", seed=1) != whole("test", seed=2)
    assert set(whole("test", seed=1)) == set(whole("test", seed=2))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no problem with operands 2 to 2"):
        whole("test", low=2, high=2, forms=("subtract",))
