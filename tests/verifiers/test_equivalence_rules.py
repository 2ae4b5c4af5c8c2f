"""Pairs in which one part of a rule of the fast path decides, by what they mean. None: only algebra can tell."""

import pytest

from negaware.verifiers.equivalence import MAX_CHARACTERS, fast_verdict, is_arithmetic, text_form

LONG = "x + " * 499 + "x+xy"
assert len(LONG) == MAX_CHARACTERS
CHOICES = [
    ("so (B) 13", "B", None),
    ("(A) or (B)", "A", None),
    ("(A), (B)", "A", None),
    ("(A) x or y", "A", None),
    ("(C) is wrong", "C", None),
    ("(B) at least 13", "13", False),
    ("(B) 1, 2", "B", True),
    ("(B) 1, 2", "1,2", True),
]
TIMES_AND_RATIOS = [
    ("7:05:00", "7:05", True),
    ("7:05:01", "7:05", None),
    ("7:05 pm sharp", "19:05", None),
    ("19:05", "7:05 pm", True),
    ("3:4:5", "3:4", None),
    ("3:4", "x:y", None),
    ("3 to 4", "3:4", True),
    ("3 to 4", "03 to 04", None),
]
WORDS = [
    ("on", "no", False),
    ("no", "yes", False),
    ("listen", "B", False),
    ("abcd", "x+1", None),
    ("abcd", "B + 1", None),
    ("AB = CD", "ab = cd", None),
    ("12_5 + 3", "x", None),
    ("x = 2", "y = 2", None),
]
NUMBERS = [
    ("at least 5", "5", False),
    ("5 if it rains", "5", False),
    ("5 or 6", "5", False),
    ("x 5 6", "56", False),
    ("x < 5", "5", False),
    ("x < 5", "x < 5.0", None),
    (r"\pi \approx 3.14", "3.14", None),
    ("gcd(4,6)", "2", False),
    ("3,5 x", "3.5", None),
    ("x", "1.5", None),
    ("1.5", "x", None),
    ("12 + 3 apples", "15", False),
    ("x + 2 + 3", "5", None),
]
LENGTHS = [
    (LONG, LONG.replace(" ", ""), True),
    (f" {LONG}", LONG.replace(" ", ""), False),
    (" " * (MAX_CHARACTERS + 1), "", False),
]


@pytest.mark.parametrize(("prediction", "gold", "verdict"), CHOICES + TIMES_AND_RATIOS + WORDS + NUMBERS + LENGTHS)
def test_what_decides(prediction: str, gold: str, verdict: bool | None) -> None:
    assert fast_verdict(prediction, gold) is verdict


def test_what_is_a_computation_left_standing() -> None:
    texts = ["12 + 3", "12 + 3 apples", "x + 2 + 3", "2 + x^2", "12"]
    assert [is_arithmetic(text) for text in texts] == [True, True, False, False, False]


def test_only_words_lose_their_case() -> None:
    assert [text_form(text) for text in ["(A)", "Odd", "AB = CD"]] == ["A", "odd", "AB=CD"]
