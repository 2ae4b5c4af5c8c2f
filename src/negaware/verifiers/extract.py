"""Finds the answer in a text: the last box, what follows "answer is" or ####, the bare text, the last number.

It takes time linear in any text: long texts are read from their end, and the length of groups is limited. It knows
nothing of right and wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from negaware.verifiers.hedges import (
    asks,
    continued,
    contrasted,
    denied,
    either,
    hedged_after,
    hedged_before,
    one_of_several,
    taken_back,
    unfinished,
)
from negaware.verifiers.latex import balanced_group, unwrap_text

Method = Literal["boxed", "answer_is", "hashes", "bare", "last_number"]

MAX_ANSWER = 4000  # characters in one box
_TAIL = 20_000  # characters at the end of a text that are searched for phrases and numbers
_MAX_BOXES = 200  # boxes that are looked at, balanced or not
_STYLE = " \t\r\n*_"  # blanks and emphasis around an answer

# Scripts written without spaces: Thai, Chinese, Japanese, Korean. In Unicode √, ≤ and → lie between them.
_UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
# Every repetition is possessive or ends where the next begins, so no text makes a pattern backtrack.
_BOX = re.compile(r"\\(?:boxed|fbox) *+(?=\{)|\\boxed ++([^\s{}$\\]{1,50})")
_REASONING = re.compile(r"<(/?)(?:think(?:ing)?|reasoning)>", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:answer|(?:correct|right|best) (?:option|choice))(?:\s++is\b|\*{0,2}\s*+[:：])(?:\s*+\*\*)?\s*+:?"
    r"(?:\s*+(?:option|choice)\b)?"
    r"|respuesta(?: es|:)|réponse(?: est| ?:)|antwort(?: ist| lautet|:)|resposta(?: é|:)|risposta(?: è|:)"
    r"|ответ(?: ?[:—-])"
    r"|答案[是为為：:]+|答え?[はが：:]+|정?답[은는이:：]+",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"\(?([A-J])\)?(?=[\s*]*+(?:$|[,.:;)–—-]|(?:because|since|as|for)\b))")
_MORE_CHOICES = re.compile(r"[\s,/;:.)]*+(?:(?:or|and|to)\b|&)?\s*+\(?[A-J]\)?(?![\w'’])(?!\s+(?:is|has|was|and)\b)")
_MULTIPLIER = re.compile(r"\s?(?:(?:hundred|thousand|million|billion|trillion|dozen)s?\b|[百千万亿萬億만억])")
_DELIMITER = re.compile(r"\\[\[\]()$]|\$\$?")
_CLOSING = {"$": "$", "$$": "$$", r"\(": r"\)", r"\[": r"\]"}
_PERCENT = re.compile(r"\s*+(?:\\?%|percent\b|pct\b)")
_CURRENCY = re.compile(r"\$(?=\d[\d,.]*+(?:\s++[A-Za-z]|\s*$))", re.MULTILINE)
_SENTENCE_END = re.compile(r"[\n。；！？]|\.(?=\s|$)|<\||</|[!?](?=\s|$)|;\s")


def _number_pattern(letter: str, minus: str, fraction: str, flags: re.RegexFlag) -> re.Pattern[str]:
    alternative = f"[{fraction}]|" if fraction else ""
    return re.compile(
        rf"(?<![{letter}]|[.,)\]}}])"
        rf"(?=[-+{minus}]?[.,]?[\d{fraction}])[-+{minus}]?"
        r"(?:\d{1,3}(?:(?:,|\{,\}|\\,|,\\! ?)\d{3})+(?!\d)|\d++)?"
        rf"(?:[.,]\d++|{alternative}(?<=\d)\.?)?(?:[eE][-+]?\d++)?(?:/[-+]?\d++(?:\.\d++)?)?"
        r"(?:\s*+(?:\\?%|percent\b|pct\b))?",
        flags,
    )


# In scripts without spaces a number follows a letter directly. Most texts are ASCII, where a simpler pattern is faster.
_NUMBER = _number_pattern(rf"^\W{_UNSPACED}", "−", "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", re.UNICODE)
_PLAIN_NUMBER = _number_pattern(r"\w", "", "", re.ASCII)
_LATEX_NUMBER = re.compile(r"[-+]?\\[dtc]?frac *+(?:\{[^{}]{1,30}\}|\d) *+(?:\{[^{}]{1,30}\}|\d)")
_COMMAND = re.compile(r"\\[A-Za-z]++")
_TEXT_GROUP = re.compile(r"\\(?:text|mbox|mathrm|mathbf|operatorname|begin|end)[a-z]*+ *+\{[^{}]*+\}(?:\{[clr| ]++\})?")
_LONG_WORD = re.compile(rf"[^\W\d_]{{2,}}|[{_UNSPACED}]")
_QUANTITY = re.compile(
    rf"[-+]?\$?(?:[.,/ ]*+\d)++\s?(?:[^\W\d_{_UNSPACED}]++\s?){{1,3}}+"
    r"(?<!\s)(?:\s?\^\{?[23]\}?|[²³])?"
)
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
_NOT_AFTER = re.compile(
    r"[\s$.,;:!)]*+(?:(?:that|this|it|which)\s+)?(?:is|was)(?:n['’]t|\s++(?:not|wrong|incorrect|false))(?!\w)",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"not\s++\S{1,30},?\s++but\s++(?:rather\s++|instead\s++)?")
_CONCLUDES = re.compile(r"(?:=|(?<!\w)(?:is|are|equals|makes|gives|of|to|totals?))[\s$*(]*+[-+−]?[\d.,/]++[^\d]*$")
_ENDS_IN_AND = re.compile(r"\b(?:and|or)[\s}$\\(\[]*$")


class _Part(NamedTuple):
    """The content of a box or a formula, and where it begins and ends, delimiters included."""

    content: str
    start: int
    end: int


def _final_part(text: str) -> tuple[str, bool]:
    """The text after its reasoning, or the content of the last `<answer>` tag in it, and whether there is one.

    A tag that isn't closed has no content: an unfinished answer is no answer.
    """
    if "<" not in text:
        return text, False
    start, end = 0, None
    for mark in _REASONING.finditer(text):
        if mark[1]:
            start, end = mark.end(), None
        elif end is None:
            end = mark.start()
    text = text[start:end]
    _, opening, rest = text.rpartition("<answer>")
    if not opening:
        return text, False
    content, closing, _ = rest.partition("</answer>")
    return content if closing else "", True


def _boxes(text: str) -> tuple[list[_Part], bool]:
    """The last balanced boxes, the last one first; or no boxes and True if the last one isn't closed."""
    found: list[_Part] = []
    end, has_frames = len(text), "\\fbox" in text
    for _ in range(_MAX_BOXES):
        start = text.rfind(r"\boxed", 0, end)
        if has_frames:
            start = max(start, text.rfind(r"\fbox", 0, end))
        if start < 0:
            break
        match = _BOX.match(text, start)
        if match is not None and match[1] is not None:
            found.append(_Part(match[1].rstrip(".,;"), start, match.end()))
        elif match is not None:
            content = balanced_group(text, match.end(), MAX_ANSWER)
            if content is not None:
                finish = match.end() + len(content) + 2
                # A box inside another is a part of the answer, not the answer.
                found = [box for box in found if box.start >= finish]
                found.append(_Part(content, start, finish))
            elif not found:
                return [], True
        end = start
        if len(found) >= 12:
            break
    return found, False


def _boxed(text: str) -> str | None:
    """The content of the last box; "", which is no answer, for a box that is empty or isn't closed."""
    boxes, left_open = _boxes(text)
    if left_open:
        return ""
    if not boxes:
        return None
    content, start, end = boxes[0]
    if len(boxes) > 1 and either(text[boxes[1].end : start]):
        return f"{boxes[1].content} or {content}"
    if denied(text[:start]) or _NOT_AFTER.match(text, end) or taken_back(text[end:]):
        return None
    if "nswer" in content:
        plain = unwrap_text(content)
        if phrase := _last_match(_PHRASE, plain):
            return _clause(plain[phrase.end() :])
    return content


def conjoined_boxes(text: str) -> str | None:
    """The contents of the last boxes that only commas, "and" or "or" separate, joined by commas; None: only one."""
    text, _ = _final_part(text)
    boxes, _ = _boxes(text)
    run = boxes[:1]
    for box in boxes[1:]:
        gap = text[box.end : run[-1].start]
        if _CONNECTIVES.sub("", gap) and not (len(gap) <= 40 and _ENDS_IN_AND.search(gap)):
            break
        run.append(box)
    return ", ".join(box.content for box in reversed(run)) if len(run) > 1 else None


def _last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    return last


def _is_prose(text: str) -> bool:
    """Whether the text has words that aren't mathematics, outside its \\text groups and commands."""
    if "\\" in text:
        text = _COMMAND.sub(" ", _TEXT_GROUP.sub(" ", text))
    words = _LONG_WORD.findall(text)
    return any(word.lower() not in _MATH_WORDS and not (word.isupper() and len(word) <= 6) for word in words)


def _formulas(text: str) -> Iterator[_Part]:
    """The `$…$`, `\\(…\\)` and `\\[…\\]` of a text, in one pass."""
    opening: re.Match[str] | None = None
    for mark in _DELIMITER.finditer(text):
        if opening is not None and mark[0] == _CLOSING[opening[0]]:
            content = text[opening.end() : mark.start()]
            if mark[0] != "$" or "\n" not in content:
                if content.strip():
                    yield _Part(content.strip(), opening.start(), mark.end())
                opening = None
                continue
        if mark[0] in _CLOSING:
            opening = mark


def _first_formula(text: str) -> _Part | None:
    return next(_formulas(text), None) if "$" in text or "\\" in text else None


def _last_formula(text: str) -> _Part | None:
    """The last delimited formula that holds mathematics."""
    formulas = [formula for formula in _formulas(_CURRENCY.sub(" ", text)) if not _is_prose(formula.content)]
    return formulas[-1] if formulas else None


def _bare(text: str) -> str | None:
    """The whole text, if it is one expression, one or two words, or a quantity with its unit."""
    stripped = text.strip(_STYLE)
    if len(stripped) > 600:
        return None
    whole = stripped.rstrip(".,。")
    formula = _first_formula(whole)
    inner = formula.content if formula and formula[1:] == (0, len(whole)) else whole
    if not inner.strip("$\\()[] "):
        return None
    words = inner.split()
    is_name = len(words) <= 2 and all(word.isalpha() for word in words)
    return stripped if is_name or not _is_prose(inner) or _QUANTITY.fullmatch(inner) else None


def _matched(pattern: re.Pattern[str], text: str, start: int) -> str:
    """What the pattern matches at this place; "" if nothing."""
    match = pattern.match(text, start)
    return match[0] if match else ""


def _last_number(text: str) -> str | None:
    """The last number of a text, or the last delimited formula if no number follows it.

    None if it is no answer: one of several, a bound, negated, in a question, or part of an unfinished computation.
    """
    tail = text[-_TAIL:]
    number = _last_match(_PLAIN_NUMBER if tail.isascii() else _NUMBER, tail)
    has_formulas = "$" in tail or "\\" in tail
    formula = _last_formula(tail) if has_formulas else None
    fraction = _last_match(_LATEX_NUMBER, tail) if has_formulas else None
    if formula is not None and (number is None or number.start() < formula.end):
        content, begin, end = formula.content + _matched(_PERCENT, tail, formula.end), formula.start, formula.end
    elif fraction is not None and (number is None or number.end() <= fraction.end() + 1):
        content, begin, end = fraction[0], fraction.start(), fraction.end()
    elif number is not None:
        multiplier = _matched(_MULTIPLIER, tail, number.end())
        content, begin = number[0].rstrip(".,") + multiplier, number.start()
        end = number.end() + (len(multiplier) or -(number[0][-1] in ".,"))
    else:
        return None
    before, after = tail[:begin], tail[end:]
    if (without := contrasted(before)) is not None and not after.strip(" .!$)"):
        return _last_number(without)
    hedged = one_of_several(before, after) or hedged_before(before) or unfinished(before)
    return None if hedged or hedged_after(after) or asks(after) else content


def _clause(text: str) -> str | None:
    """The answer at the start of what follows "answer is" or ####; a hedged clause as a whole, so that it is wrong."""
    text = text.lstrip(_STYLE + ":：")[:MAX_ANSWER]
    if contrast := _NOT_BUT.match(text):
        text = text[contrast.end() :]
    end = _SENTENCE_END.search(text)
    clause = (text[: end.start()] if end else text).strip(_STYLE + "`\"'")
    formula = _first_formula(text)
    if formula and formula.start == 0 and not _CURRENCY.match(text):
        percent = _matched(_PERCENT, text, formula.end)
        rest = text[formula.end + len(percent) :]
        return clause if hedged_after(rest) or continued(rest) else formula.content + percent
    if not clause:
        return None
    choice = _CHOICE.match(clause)
    if choice:
        rest = clause[choice.end() :].lstrip("* ")
        if _MORE_CHOICES.match(rest) or hedged_after(rest):
            return clause
        if not rest.strip(" .,:;") or _is_prose(rest):
            return choice[1]
    bare = _bare(clause)
    if bare is not None:
        return f"{bare} or" if end and hedged_after(text[end.start() :]) else bare
    head = _NUMBER.match(clause.lstrip("$"))
    if head is not None:
        after = clause.lstrip("$")[head.end() :]
        if not continued(after):
            number = head[0].rstrip(".,") + _matched(_MULTIPLIER, after, 0)
            return clause if hedged_after(after) else number
        if "=" not in clause:
            return clause
    is_list = len(_NUMBER.findall(clause)) > 1 and not _CONCLUDES.search(clause)
    found = None if is_list else _last_number(clause)
    return found or (clause if len(clause) <= 100 else "")


def _answer_is(text: str) -> str | None:
    """What follows the last "answer is" or "answer:"."""
    tail = text[-_TAIL:]
    phrase = _last_match(_PHRASE, tail)
    if phrase is None:
        return None
    return "" if denied(tail[: phrase.end()]) else _clause(tail[phrase.end() :])


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
METHODS: tuple[Method, ...] = get_args(Method)


def check_methods(methods: Sequence[str] | Literal["auto"]) -> tuple[str, ...]:
    """The extraction methods, in the order tried. Raises ValueError for an unknown name or none at all."""
    chosen = METHODS if methods == "auto" else (methods,) if isinstance(methods, str) else tuple(methods)
    unknown = [method for method in chosen if method not in _FINDERS]
    if unknown or not chosen:
        got = ", ".join(repr(method) for method in unknown) or "none"
        raise ValueError(f"extract: got {got}; use 'auto' or some of {', '.join(METHODS)}")
    return chosen


def extract_answer(text: str, methods: Sequence[str] | Literal["auto"] = "auto") -> str | None:
    """The answer that the first successful method finds, or None."""
    return find_answer(text, check_methods(methods))


def find_answer(text: str, methods: Sequence[str]) -> str | None:
    """`extract_answer` for methods that `check_methods` has seen."""
    text, tagged = _final_part(text)
    for method in methods:
        found = _FINDERS[method](text)
        if found is None and tagged and method == "answer_is":
            found = _clause(text)  # the tag stands for "the answer is"
        if found is not None:
            # An empty box ends the search: it says that there is no answer.
            return found.strip() or None
    return None
