"""Several candidates and denied claims beside honest sentences that hold the same words."""

import pytest

from negaware.verifiers.extract import extract_answer
from negaware.verifiers.math import MathVerifier

NOT_FIVE = r"""
It could be 3, 4, 5
It could be $3$, $4$, $5$.
It is 3, 4 and 5
Answers: 3 4 5
Answers: 3, 4, 5
Possible answers: 3; 4; 5
Possible answers are 3 or 4, perhaps 5
Possible answers: 5
Candidates: 3, 5
\boxed{5} or maybe \boxed{6}
\boxed{6} or maybe \boxed{5}
\boxed{5}, or maybe 6.
\boxed{3} / \boxed{5}
\boxed{3}/\boxed{5}
\boxed{3} vs \boxed{5}
\boxed{3} alternatively \boxed{5}
\boxed{3}, alternatively \boxed{5}
\boxed{3}. Perhaps \boxed{5}
\boxed{3} or it could be \boxed{5}
Either $\boxed{3}$ or else $\boxed{5}$
Possible answers: \boxed{3}, \boxed{5}
I don't think the answer is 5
I don't believe that the answer is \boxed{5}.
I do not think it is 5.
I don't think x = 5.
It is false that the answer is 5.
It is false that the answer is \boxed{5}.
It is not true that the answer is 5.
It is unlikely that the answer is 5.
Nobody says the answer is 5.
No one thinks that the answer is 5.
Some say the answer is 5.
One might say the answer is 5.
I doubt the answer is 5.
The wrong answer is 5
The wrong answer is \boxed{5}
An incorrect answer is 5.
A possible answer is 5.
If the answer is 5, I'd be surprised.
If it were 5 I'd be surprised
If it were \boxed{5} I'd be surprised
The answer is hardly 5.
The answer is 5. No wait, it is 7.
The answer is 5. Wait, no, it is 7.
The answer is 5. Actually, it is 7.
The answer is 5. Sorry, it's 7.
The answer is \boxed{5}. No wait, it is 7.
The answer is not 5 but 7.
The answer is not 7 but 5 or 6.
It is 7, not 5
"""
FIVE = r"""
I think the answer is 5.
I don't know why, but the answer is 5.
If n is even, the answer is 5.
If x = 3 the answer is 5.
It was wrong before, so the answer is 5.
The number of possible answers is 5.
The number of possible values is 5.
The answer is 7. No wait, the answer is 5.
The answer is 7. No wait, it is \boxed{5}.
The answer is 5. No other value works.
\boxed{3}, no: \boxed{5}
\boxed{3} or rather \boxed{5}
\boxed{5.0} or equivalently \boxed{5}
\boxed{1} and \boxed{5}
2 + 3 is 5, not 6
2 + 3 is 5, not 6.
The answer is 5, not 6.
The answer is not 7 but 5
The answer is not 7, but 5.
The answer is not 7 but rather 5.
It is not 7 but 5.
In 2020, 5 apples were sold.
Counting 3, 4, 5: 5
The mean of 3, 5, 7 is 5
There are 4 boxes and 5 apples.
"""


@pytest.mark.parametrize(("table", "correct"), [(NOT_FIVE, False), (FIVE, True)], ids=["not five", "five"])
def test_a_value_is_right_where_the_text_claims_it_alone(verifier: MathVerifier, table: str, correct: bool) -> None:
    texts = table.strip().splitlines()
    verdicts = verifier.grade_pairs(texts, ["5"] * len(texts))
    assert [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.correct is not correct] == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("= 12", "12"),
        ("=12", "12"),
        ("-> 12", "12"),
        ("½", "½"),
        ("It takes 1½", "1½"),
        ("7 × 8 is 56, not 54", "56"),
        ("The answer is not 54 but 56", "56"),
        ("It is 3, 4, 5", None),
        ("Answers: 3 4 5", None),
        ("If it were 56 I'd be surprised", None),
        ("It is not 54, not 56", None),
    ],
)
def test_the_last_number_is_the_one_claimed(text: str, found: str | None) -> None:
    assert extract_answer(text, ["last_number"]) == found


@pytest.mark.parametrize(("gold", "correct"), [("7", True), ("5", False)])
def test_the_value_that_replaces_another_is_the_one_graded(verifier: MathVerifier, gold: str, correct: bool) -> None:
    texts = ["The answer is not 5 but 7.", "The answer is 5. No: the answer is 7.", r"\boxed{5}. Sorry, \boxed{7}"]
    assert [verdict.correct for verdict in verifier.grade_pairs(texts, [gold] * 3)] == [correct] * 3
