"""Words around a value that keep it from being the answer: alternatives, bounds, negations, questions.

A policy could be paid for "3 or 5" and "at least 5" alike. It knows no values.
"""

from __future__ import annotations

import re

_BEFORE = re.compile(
    r"(?:(?<!\w)(?:either|neither|n?or|not|never|cannot|no|least|most|than|between|above|below|under|over|unless|except"
    r"|exceeds?|maybe|perhaps|possibly|alternatively|doubt|(?:any|every)thing\s+but"
    r"|(?:may|might|could)(?=\s+be\b)|up\s+to|ni|nicht|oder|entre|au\s+(?:moins|plus)"
    r"|mindestens|al\s+menos)|n['’]t)(?!\w)(?:(?!\b(?:but|so|then)\b)[^\d.,;:?!\n]){0,15}$|(?:不|没有|或|至少|至多|大于|小于)[^\d。，\n]{0,4}$",
    re.IGNORECASE,
)
_OPERATION_BEFORE = re.compile(
    r"(?:[√≠]|!=|\\neq?|(?<!\w)(?:minus|negative|twice|thrice|double|triple|half|vs\.?|versus"
    r"|(?:half|double|triple|squared?|cubed?|root|third|quarter|fifth|logarithm|factorial|reciprocal|opposite|inverse)"
    r"\s++of(?:\s++the\s++number)?|(?:between|both)\s++[^\s]{1,20}\s++and))[\s$*({]*+$",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r"[\s$*.,;:!)\]}]*+(?:(?:that|this|it|which)\s+)?"
    r"(?:(?:is|was)(?:n['’]t|\s++(?:an?\s++|the\s++)?(?:not|wrong|incorrect|false|never))(?!\w)"
    r"|['’]s\s++(?:not|wrong|incorrect)|(?:no|wrong|incorrect|not)(?=[\s.,!;:]*+$))"
    r"|[^\d.,!?;:\n]{0,40}(?<!\w)n?or(?!\w)|[\s$*)]*+(?:at\s+(?:least|most)|and\s+(?:above|up|over|more|below))(?!\w)"
    r"|[.!;,]\s++(?:or|alternatively|otherwise|maybe|perhaps|possibly)(?!\w)|[\s$]*+(?:或|以上|以下|不|가\s*아|ではな)",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"[^.!?。\n]{0,200}[?？]")
_UNFINISHED = re.compile(r"[\d)}]\s*+(?:[-+*/×÷^−]|\\times|\\cdot|\\div|plus|minus|times|divided by)\s*+[\s$(]*$")
_CONTINUED = re.compile(
    r"\s*+(?:[-+*/×÷^−=<>≤≥!]|\\times|\\cdot|\\div|\\pm|±|(?:plus|minus|times|to|divided\s+by|mod)\b)"
)
_OPEN_EQUATION = re.compile(
    r"(?:\d *[a-z]|(?<![A-Za-z])[a-z] *+[-+*/^−] *+[\d.]+|[-+*/−] *+[a-z]|\^ *\{?\d\}?) *+=\s*+[$(]*$"
)
_WORDS = re.compile(
    r"(?<!\w)(?:either|neither|n?or|not|never|cannot|no|least|most|more|less|fewer|than|between|above|below|maybe|perhaps"
    r"|possibly|might|could|unless|if|when|except|wrong|incorrect|false|rejected|squared|cubed|factorial|plus|minus|times"
    r"|over|under|mod|modulo|choose|hundred|thousand|million|billion|trillion|dozen)(?!\w)|n['’]t(?!\w)"
    r"|[?']|\.\.\.|\\[lc]?dots",
    re.IGNORECASE,
)


def hedged_before(text: str) -> bool:
    """Whether a text's end keeps a value after it from being claimed: "at least", "3 or", "it can't be", "half of"."""
    text = text[-60:]
    return (_BEFORE.search(text) or _OPERATION_BEFORE.search(text)) is not None


def hedged_after(text: str) -> bool:
    """Whether a text's beginning takes back the value before it: "or 5", "is wrong", ". Or maybe"."""
    return _AFTER.match(text[:80]) is not None


def asks(text: str) -> bool:
    """Whether the sentence that goes on here is a question."""
    return _QUESTION.match(text[:220]) is not None


def unfinished(before: str) -> bool:
    """Whether a value after this text is the last operand of a computation, or a side of an equation to be solved."""
    return bool(_UNFINISHED.search(before[-40:]) or _OPEN_EQUATION.search(before[-40:]))


def continued(after: str) -> bool:
    """Whether a computation or a relation goes on after the value."""
    return _CONTINUED.match(after) is not None


def is_hedged(text: str) -> bool:
    """Whether a short answer holds more than a value: a choice, bound, negation, condition or operation in words."""
    return _WORDS.search(text) is not None
