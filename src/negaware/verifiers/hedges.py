"""Words around a value because of which it is no answer: alternatives, bounds, negations, questions.

Without this check, a policy would be rewarded for "3 or 5" and "at least 5" as for 5.
"""

from __future__ import annotations

import re

_BEFORE = re.compile(
    r"(?:(?<!\w)(?:either|neither|n?or|not|never|cannot|no|least|most|than|between|above|below|under|over|unless|except"
    r"|exceeds?|maybe|perhaps|possibly|alternatively|hardly|barely|scarcely|doubt|(?:any|every)thing\s+but"
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
_TAKEN_BACK = (
    r"(?:(?:oh|hmm+|um)[\s,.]++)?(?:no[\s,]++(?:wait|it|that|sorry|the)|wait[\s,]++(?:no|it|that|the)|sorry|oops"
    r"|scratch\s++that|correction|actually,?\s++(?:it|no|that|the))(?!\w)"
)
_AFTER = re.compile(
    r"[\s$*.,;:!)\]}]*+(?:(?:that|this|it|which)\s+)?"
    r"(?:(?:is|was)(?:n['’]t|\s++(?:an?\s++|the\s++)?(?:not|wrong|incorrect|false|never))(?!\w)"
    r"|['’]s\s++(?:not|wrong|incorrect)|(?:no|wrong|incorrect|not)(?=[\s.,!;:]*+$))"
    r"|[^\d.,!?;:\n]{0,40}(?<!\w)n?or(?!\w)|[\s$*)]*+(?:at\s+(?:least|most)|and\s+(?:above|up|over|more|below))(?!\w)"
    rf"|[.!;,]\s++(?:(?:or|alternatively|otherwise|maybe|perhaps|possibly)(?!\w)|{_TAKEN_BACK})"
    r"|[\s$]*+(?:或|以上|以下|不|가\s*아|ではな)",
    re.IGNORECASE,
)
# Words between a denial and what it denies: "I don't think that the right answer is".
_LEAD = (
    r"(?:\s++(?:that|the|an?|my|your|our|this|it|there|final|correct|right|true|best|only|answer|result|value|solution"
    r"|number|total|sum|option|choice|is|was|were|are|be|equals?|[a-z]|=)(?![\w'’]))*+[\s$*(:=\\\[]*+(?:boxed\{)?$"
)
_SAY = (
    r"(?:think|thought|believe|believed|say|said|agree|claim|claimed|assume|suppose|guess|know|expect|mean|accept"
    r"|argue)s?"
)
_DENIED = re.compile(
    r"(?<!\w)(?:(?:(?:\w{1,9}n['’]t|not|never|cannot|nobody|no\s+one|none|few|some|others?|someone|many|people|hardly"
    r"|might|may|could|would)(?:\s++(?:of|us|people|students?|one|would|can|could|may|might|do|even|really))*+\s++"
    rf"(?:{_SAY}|true|correct|right|sure|certain|clear|likely|the\s++case))"
    r"|(?:false|untrue|wrong|incorrect|invalid|unlikely|impossible|unsure|unclear|doubt|doubts|doubtful|deny|denies"
    r"|refute|reject)"
    r"|(?:if|unless|whether|suppose|supposing|imagine|pretend|assuming)"
    r"|(?:possible|potential|plausible|alternative|another|other)(?=\s++(?:\w++\s++)?answer\s++is)"
    rf"){_LEAD}",
    re.IGNORECASE,
)
_NOT_BEFORE = re.compile(r"(?:(?<!\w)(?:not|never|cannot|can't)|n['’]t)(?:\s++(?:be|equal|to))*+[\s$*(]*+$")
_CANDIDATES = re.compile(
    r"(?<!\w)(?:(?:possible|potential|plausible|candidate|likely)(?:\s++\w++){0,2}?(?:\s*+:|\s++(?:are|include)(?!\w))"
    r"|(?:answers|candidates|guesses|possibilities)(?:\s*+:|\s++(?:are|include)(?!\w)))[^.!?\n]{0,40}$",
    re.IGNORECASE,
)
_BOX_TAKEN_BACK = re.compile(
    rf"[\s$*)]*+(?:[.!;,]\s++{_TAKEN_BACK}|[,;]?\s*+(?:or\s++)?(?:maybe|perhaps|possibly|alternatively)(?!\w)"
    r"|\s*+I['’]d\s++be\s++surprised)",
    re.IGNORECASE,
)
_EITHER = re.compile(
    r"[\s$,;.*()\\-]*+(?:\\(?:text|mbox) *+\{ *+or *+\}|/|\|"
    r"|(?:or|vs|versus|alternatively|maybe|perhaps|possibly|otherwise)(?!\w)"
    r"(?!,?\s++(?:rather|better|equivalently|equal|simply|in\s++other)))[^.!?\n]{0,30}",
    re.IGNORECASE,
)
_LISTED = re.compile(r"\d[$)]*+\s*+(?:[,;/]\s*+(?:and\s)?|(?<=\s)and\s|(?<=\s))[\s$(]*$")
_ENDS = re.compile(r"[\s.$)\]]*$")
_NOT_THAT = re.compile(r"[\w)}%$]\s*+,?\s++(?:and\s++)?not\s++\$?$")
# A text without any of these words neither hedges nor denies. This check is faster than the patterns.
_HEDGING_WORDS = frozenset(
    re.findall(
        r"\w+",
        "either neither or nor not never cannot no least most than between above below under over unless "
        "except exceed exceeds maybe perhaps possibly alternatively hardly barely scarcely doubt doubts "
        "doubtful anything everything may might could would up ni nicht oder entre au mindestens al nobody "
        "none few some other others someone many people false untrue wrong incorrect invalid unlikely "
        "impossible unsure unclear deny denies refute reject if whether suppose supposing imagine pretend "
        "assuming possible potential plausible alternative another candidate likely answers candidates "
        "guesses possibilities",
    )
)
_SEPARATORS = {code: " " for code in range(128) if not chr(code).isalnum()} | {ord("'"): ""}
_PLAIN_LEADS = frozenset(
    f"{lead} answer {verb}"
    for lead in ("The", "the", "So the", "Thus the", "Thus, the", "Therefore, the", "Hence the", "The final")
    for verb in ("is", "is:")
) | {"Answer:", "Final answer:", "The answer:"}
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
    """Whether a value after this text isn't claimed as the answer: "at least", "3 or", "it can't be", "half of"."""
    text = text[-60:]
    if _may_deny(text) and (_BEFORE.search(text) is not None or denied(text)):
        return True
    return _OPERATION_BEFORE.search(text) is not None


def _may_deny(text: str) -> bool:
    return (
        not text.isascii()
        or "n't" in text
        or "N'T" in text
        or not _HEDGING_WORDS.isdisjoint(text.lower().translate(_SEPARATORS).split())
    )


def denied(text: str) -> bool:
    """Whether the end of a text denies, doubts or only supposes what follows: "I don't think the answer is"."""
    text = text[-80:].rpartition(".")[2]  # a denial ends with its sentence
    if text.rpartition("\n")[2].strip(" $*") in _PLAIN_LEADS:
        return False
    return _may_deny(text) and any(pattern.search(text) for pattern in (_NOT_BEFORE, _DENIED, _CANDIDATES))


def either(between: str) -> bool:
    """Whether the text between two values offers them as alternatives."""
    return len(between) <= 80 and _EITHER.fullmatch(between) is not None


def one_of_several(before: str, after: str) -> bool:
    """Whether the value between these texts is the last one of a list: 3, 4, 5."""
    return _LISTED.search(before[-20:]) is not None and _ENDS.match(after) is not None


def contrasted(before: str) -> str | None:
    """ "it is 56" for "it is 56, not": the answer stands before these words. None if the text doesn't end in 'not'."""
    match = _NOT_THAT.search(before[-20:]) if "not" in before else None
    return before.removesuffix(match[0][1:]) if match else None


def taken_back(after: str) -> bool:
    """Whether the text after a boxed answer replaces it: "no wait, it is 7", "or maybe 6"."""
    return _BOX_TAKEN_BACK.match(after[:60]) is not None


def hedged_after(text: str) -> bool:
    """Whether the beginning of a text takes back the value before it: "or 5", "is wrong", ". Or maybe"."""
    return _AFTER.match(text[:80]) is not None


def asks(text: str) -> bool:
    """Whether the sentence that this text continues is a question."""
    return _QUESTION.match(text) is not None


def unfinished(before: str) -> bool:
    """Whether a value after this text is an operand of a computation, or a side of an equation that isn't solved."""
    return bool(_UNFINISHED.search(before[-40:]) or _OPEN_EQUATION.search(before[-40:]))


def continued(after: str) -> bool:
    """Whether a computation or a relation continues after the value."""
    return _CONTINUED.match(after) is not None


def is_hedged(text: str) -> bool:
    """Whether a short answer has words of a choice, bound, negation, condition or operation beside its value."""
    return _WORDS.search(text) is not None
