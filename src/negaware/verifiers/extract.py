"""Finds the answer in a text: the last box, what follows "answer is" or ####, the bare text, the last number.

Linear in the text however hostile it is: long texts are read from their end, groups are length-capped.
It knows nothing of right and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from negaware.verifiers.latex import balanced_group

Method = Literal["boxed", "answer_is", "hashes", "bare", "last_number"]

MAX_ANSWER = 4000  # characters in one box
_TAIL = 20_000  # characters at the end of a text that are searched for phrases and numbers
_MAX_BOXES = 200  # unbalanced boxes passed over before giving up

# Every repetition is possessive or ends where the next begins, so no text makes one go back over what it has read.
_BOX = re.compile(r"\\(?:boxed|fbox) *+(?=\{)|\\boxed ++([^\s{}$\\]{1,50})")
_PHRASE = re.compile(r"answer(?:\s++is|\*{0,2}\s*+:)(?:\s*+\*\*)?\s*+:?|答案[是为：:]+", re.IGNORECASE)
_DELIMITER = re.compile(r"\\[\[\]()$]|\$\$?")
_CLOSING = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_PERCENT = re.compile(r"\s*+(?:\\?%|percent\b|pct\b)")
_CURRENCY = re.compile(r"\$(?=\d[\d,.]*+(?:\s++[A-Za-z]|\s*$))", re.MULTILINE)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)|<\||</|[!?](?=\s|$)|;\s")
_NUMBER = re.compile(
    r"(?<![\w.,)\]}])(?=[-+−]?[.,]?\d)[-+−]?(?:\d{1,3}(?:(?:,|\{,\}|\\,|,\\! ?)\d{3})+(?!\d)|\d++)?"
    r"(?:[.,]\d++|(?<=\d)\.?)?(?:[eE][-+]?\d++)?(?:/[-+]?\d++(?:\.\d++)?)?(?:\s*+(?:\\?%|percent\b|pct\b))?"
)
_LATEX_NUMBER = re.compile(r"[-+]?\\[dtc]?frac *+(?:\{[^{}]{1,30}\}|\d) *+(?:\{[^{}]{1,30}\}|\d)")
_COMMAND = re.compile(r"\\[A-Za-z]++")
_TEXT_GROUP = re.compile(r"\\(?:text|mbox|mathrm|mathbf|operatorname|begin|end)[a-z]*+ *+\{[^{}]*+\}(?:\{[clr| ]++\})?")
_LONG_WORD = re.compile(r"[^\W\d_]{2,}")
_QUANTITY = re.compile(r"[-+]?\$?(?:[.,/ ]*+\d)++\s?[^\W\d_]++(?:\s[^\W\d_]++){0,2}+(?:\s?\^\{?[23]\}?|[²³])?")
_MATH_WORDS = frozenset(
    re.findall(
        r"\w+",
        "and or in if sin cos tan sec csc cot arcsin arccos arctan log ln exp sqrt pi lim max min mod gcd lcm det dx "
        "dy dt inf infty cm mm km kg",
    )
)
_CONNECTIVES = re.compile(
    r"\\(?:text|mbox) *+\{ *+(?:and|or|,)? *+\}|\\q?quad|\\[,;()\[\] ]|\band\b|\bor\b"
    r"|[A-Za-z](?:_\{?\w{1,9}\}?)? *+=|[\s$,;]++"
)
_ENDS_IN_AND = re.compile(r"\b(?:and|or)[\s}$\\(\[]*$")


def _boxes(text: str) -> list[tuple[str, int, int]]:
    """The trailing run of balanced boxes, last first: content, start, end. At most a few hundred are tried."""
    found: list[tuple[str, int, int]] = []
    end = len(text)
    for _ in range(_MAX_BOXES):
        start = max(text.rfind(r"\boxed", 0, end), text.rfind(r"\fbox", 0, end))
        if start < 0:
            break
        match = _BOX.match(text, start)
        if match is not None and match[1] is not None:
            found.append((match[1].rstrip(".,;"), start, match.end()))
        elif match is not None:
            content = balanced_group(text, match.end(), MAX_ANSWER)
            if content is not None:
                # A box inside another is a part of the answer, not the answer: drop what it encloses.
                while found and found[-1][2] <= match.end() + len(content) + 2:
                    found.pop()
                found.append((content, start, match.end() + len(content) + 2))
        end = start
        if len(found) >= 12:
            break
    return found


def _boxed(text: str) -> str | None:
    """The last balanced box's content; an empty one says that there is no answer."""
    boxes = _boxes(text)
    return boxes[0][0].strip() if boxes else None


def conjoined_boxes(text: str) -> str | None:
    """The contents of the last boxes that only commas, "and" or "or" join, with commas between; None: no such."""
    boxes = _boxes(text)
    run = boxes[:1]
    for box in boxes[1:]:
        gap = text[box[2] : run[-1][1]][:200]
        if _CONNECTIVES.sub("", gap) and not (len(gap) <= 40 and _ENDS_IN_AND.search(gap)):
            break
        run.append(box)
    return ", ".join(content for content, _, _ in reversed(run)) if len(run) > 1 else None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _is_prose(text: str) -> bool:
    """Whether words that aren't mathematics stand in the text outside its \\text groups and commands."""
    words = _LONG_WORD.findall(_COMMAND.sub(" ", _TEXT_GROUP.sub(" ", text)))
    return any(word.lower() not in _MATH_WORDS and not (word.isupper() and len(word) <= 6) for word in words)


def _segments(text: str) -> Iterator[tuple[int, str, int]]:
    """The `$…$`, `\\(…\\)` and `\\[…\\]` of a text in one pass: where each starts, its content, where it ends."""
    opening: re.Match[str] | None = None
    for mark in _DELIMITER.finditer(text):
        if opening is not None and mark[0] == _CLOSING[opening[0]]:
            content = text[opening.end() : mark.start()]
            if mark[0] != "$" or "\n" not in content:
                if content.strip():
                    yield opening.start(), content.strip(), mark.end()
                opening = None
                continue
        if mark[0] in _CLOSING:
            opening = mark


def _math_segment(text: str) -> tuple[str, int] | None:
    """The last delimited formula that holds mathematics, and where it ends."""
    last = None
    for _, content, end in _segments(_CURRENCY.sub(" ", text)):
        if len(content) <= MAX_ANSWER and not _is_prose(content):
            last = (content, end)
    return last


def _bare(text: str) -> str | None:
    """The whole text, if it is one expression, one or two words, or a quantity with its unit."""
    stripped = text.strip().strip("*_").strip()
    if not stripped or len(stripped) > 600:
        return None
    whole = stripped.rstrip(".,")
    start, content, end = next(_segments(whole), (0, "", 0))
    inner = content if start == 0 and end == len(whole) else stripped
    if not inner.strip("$\\()[] "):
        return None
    if not _is_prose(inner) or _QUANTITY.fullmatch(inner.rstrip(".")):
        return stripped
    words = inner.rstrip(".").split()
    return stripped if len(words) <= 2 and all(word.isalpha() for word in words) else None


def _last_number(text: str) -> str | None:
    """The last number of a text, or the last delimited formula if no number follows it."""
    tail = text[-_TAIL:]
    number = _last_match(_NUMBER, tail)
    segment = _math_segment(tail)
    fraction = _last_match(_LATEX_NUMBER, tail)
    if segment is not None and (number is None or number.end() <= segment[1]):
        percent = _PERCENT.match(tail, segment[1])
        return segment[0] + (percent[0] if percent else "")
    if fraction is not None and (number is None or number.end() <= fraction.end() + 1):
        return fraction[0]
    return number[0].strip().rstrip(".,") if number else None


def _clause(text: str) -> str | None:
    """The answer at the head of what follows "answer is" or ####."""
    text = text.lstrip(" \t\r\n*_:")[:MAX_ANSWER]
    if not _CURRENCY.match(text):
        begin, content, finish = next(_segments(text), (1, "", 0))
        if begin == 0:
            percent = _PERCENT.match(text, finish)
            return content + (percent[0] if percent else "")
    end = _SENTENCE_END.search(text)
    clause = (text[: end.start()] if end else text).strip().strip("*_`\"' ").strip()
    if not clause:
        return None
    bare = _bare(clause)
    if bare is not None:
        return bare
    head = _NUMBER.match(clause.lstrip("$"))
    if head is not None:
        return head[0].strip().rstrip(".,")  # "3 more than 12" says 3 first
    return _last_number(clause) or (clause if len(clause) <= 100 else None)


def _answer_is(text: str) -> str | None:
    """What follows the last "answer is" or "answer:"."""
    tail = text[-_TAIL:]
    phrase = _last_match(_PHRASE, tail)
    return _clause(tail[phrase.end() :]) if phrase else None


def _hashes(text: str) -> str | None:
    """What follows the last ####."""
    _, marker, rest = text.rpartition("####")
    return _clause(rest) if marker else None


_FINDERS: dict[str, Callable[[str], str | None]] = {
    "boxed": _boxed,
    "answer_is": _answer_is,
    "hashes": _hashes,
    "bare": _bare,
    "last_number": _last_number,
}
METHODS: tuple[Method, ...] = ("boxed", "answer_is", "hashes", "bare", "last_number")


def check_methods(methods: Sequence[str] | Literal["auto"]) -> tuple[str, ...]:
    """The extraction methods, in the order tried. Raises ValueError for an unknown name or none at all."""
    chosen = METHODS if methods == "auto" else (methods,) if isinstance(methods, str) else tuple(methods)
    unknown = [method for method in chosen if method not in _FINDERS]
    if unknown or not chosen:
        got = ", ".join(repr(method) for method in unknown) or "none"
        raise ValueError(f"extract: got {got}; use 'auto' or some of {', '.join(METHODS)}")
    return chosen


def extract_answer(text: str, methods: Sequence[str] | Literal["auto"] = "auto") -> str | None:
    """The answer that the first successful method finds, or None. Linear in the text's length."""
    for method in check_methods(methods):
        found = _FINDERS[method](text)
        if found is not None:
            # An empty box ends the search: a model that boxed nothing gave no answer.
            return found.strip() or None
    return None
