"""The fast path: prediction and gold as texts → same, different, or None if only symbolic algebra can decide.

It compares exact numbers and normalised texts. It evaluates nothing, so any text of a model is safe here.
"""

from __future__ import annotations

import re

from negaware.verifiers.hedges import hedged_after, is_hedged
from negaware.verifiers.latex import clean, has_relation, name_different_things, strip_assignment, unwrap_text
from negaware.verifiers.numbers import equal_numbers, parse_comma_decimal, parse_number

MAX_CHARACTERS = 2000  # of one side; a longer one is only compared as a text

_CHOICE = re.compile(r"\(? *([A-Z]) *\)?")
_CHOICE_EXPLAINED = re.compile(r"\(([A-J])\)[.:]? *(\S.*)|([A-J])(?:\)|[.:]) +(\S.*)", re.DOTALL)
_ARITHMETIC = re.compile(r"(?:[\d\s.,+\-*/^(){}]|\\cdot|\\times|\\div|\\frac)++")
_OPERATION = re.compile(r"[\d)}] *(?:[+\-*]|\\cdot|\\times|\\div)|[)}] *\(|\d *\(")
_TRAILING_WORDS = re.compile(r"(?:\\text *+\{[^{}]*+\}|(?<![A-Za-z\\])[A-Za-z]++(?: [A-Za-z]++)*+) *+$")
_LONE_BRACES = re.compile(r"\{(\w)\}")
_WORD = re.compile(r"[^\W\d_]{2,}(?: [^\W\d_]+)*")
_IN_BASE = re.compile(r"0*+([0-9][0-9A-Fa-f]*+)_\{?(?:base)?(\d{1,2})\}?")
_RATIO = re.compile(r"(\d{1,30}) *+(?::|to) *+(\d{1,30})")
_LISTED_CHOICE = re.compile(r"[\s,;/&]*+(?:(?:and|or)\s++)?\(?[A-J](?:[).,:;]|$)|[,;/&]|(?:.*\W)?or\W", re.DOTALL)
# What asks for a computation rather than giving a value; the floor of a plain number is read as its integer part.
_OPERATION_NAME = re.compile(
    r"\\(i{1,3}nt|oint|lim(?:sup|inf)?|gcd|lcm|det|max|min|sup|inf|sum|prod|lceil|nabla|deg|dim|arg|tr)(?![A-Za-z])"
    r"|\\[bp]?(mod)(?![A-Za-z])|\\(lfloor)(?! ?-?[\d.]++ ?\\rfloor)|\\(partial)(?![A-Za-z])|(d ?\} ?\{ ?d ?[a-z])"
    r"|(?<![A-Za-z\\])(gcd|lcm|hcf|gcf|det|max|min|lim|sum|prod|mod|floor|ceil|round|int|rem)(?= ?[({\[_|\d\\])"
    r"|\\begin ?\{(vmatrix)|([∫∬∮∑∏⌈∇])|\\end\{[a-zA-Z]++\} ?(\^|\\cdot|\\times|\\begin)"
)
_SPACED_DIGITS = re.compile(r"(?<![_^\d.])\d++ ++\d")  # but the 2 of log_2 8 is a base
_SPACES = re.compile(r"(?<!\d) ++| ++(?!\d)")
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d))? *(?:([AaPp])\.?[Mm]\.?)?")


def text_form(text: str) -> str:
    """A text's spelling with styling, spaces and (for words) case removed; equal forms are equal answers."""
    form = unwrap_text(clean(text)).strip()
    choice = _CHOICE.fullmatch(form)
    if choice:
        return choice[1]
    if _WORD.fullmatch(form):
        return form.lower()
    form = _SPACES.sub("", form)  # 12 13 isn't 1213; `parse_number` reads thousands in groups
    # Braces around a single character are optional, as in x^{2}; elsewhere they may have a meaning.
    return _LONE_BRACES.sub(r"\1", form)


def normal_form(text: str) -> str:
    """One spelling for `1/2`, `0.5` and `\\frac12`: the exact value of a plain number, else the text's `text_form`."""
    number = parse_number(text)
    return text_form(text) if number is None else f"{number.value}{'%' if number.percent else ''}"


def is_arithmetic(text: str) -> bool:
    """Whether a text is a sum or product of plain numbers that wasn't computed, such as an echo of the question."""
    text = _TRAILING_WORDS.sub("", text)
    return bool(_ARITHMETIC.fullmatch(text) and _OPERATION.search(text))


def _clock_time(text: str) -> tuple[int, int, int] | None:
    """A clock time with minutes → hours since midnight, minutes, seconds."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        return None
    hours = int(match[1])
    if match[4]:
        hours = hours % 12 + (12 if match[4] in "Pp" else 0)
    return hours, int(match[2]), int(match[3] or 0)


def _explained_choice(text: str, other_form: str) -> bool:
    """Whether a text such as `(B) 13` names the other side's choice, or its value."""
    match = _CHOICE_EXPLAINED.match(unwrap_text(clean(text)))
    if match is None:
        return False
    letter, rest = match[1] or match[3], match[2] or match[4]
    # "(A) or (B)" and "A. B. C." choose nothing.
    chosen = not _LISTED_CHOICE.match(rest) and not hedged_after(" " + rest)
    return chosen and other_form in (letter, text_form(rest))


def _is_word(form: str) -> bool:
    """Whether a spelling is a word, which algebra would read as a product of letters: silent would equal listen."""
    return form.isalpha() and (len(form) > 3 or form in ("yes", "no", "odd", "on"))


def _spellings_differ(prediction: str, gold: str) -> bool:
    """Whether the spellings of two texts alone show that they mean different things."""
    based, gold_based = _IN_BASE.fullmatch(prediction), _IN_BASE.fullmatch(gold)
    if based or gold_based:
        # The same digits in another base are another number; a number without its base restates the question.
        return not (based and gold_based) or based.groups() != gold_based.groups()
    return _is_word(prediction) and (_is_word(gold) or _CHOICE.fullmatch(gold) is not None)


def _operations(text: str) -> set[str]:
    """The names of the operations that a text asks for."""
    return {"".join(names) for names in _OPERATION_NAME.findall(unwrap_text(clean(text)))}


def _equal_ratios_or_times(prediction: str, gold: str) -> bool:
    """Whether both are the same ratio or clock time. As 7:32 may be either, different ones prove nothing."""
    texts = unwrap_text(clean(prediction)), unwrap_text(clean(gold))
    first, second = (_RATIO.fullmatch(text) for text in texts)
    time, gold_time = map(_clock_time, texts)
    return bool(first and second and first.groups() == second.groups()) or (time is not None and time == gold_time)


def fast_verdict(prediction: str, gold: str) -> bool | None:
    """True or False if numbers or spelling decide it, None if symbolic algebra must."""
    first, second = parse_number(prediction), parse_number(gold)
    if first is not None and second is not None and not name_different_things(prediction, gold):
        return equal_numbers(first, second)
    if len(prediction) > MAX_CHARACTERS or len(gold) > MAX_CHARACTERS:
        return bool(gold) and prediction.strip() == gold.strip()
    form, gold_form = text_form(prediction), text_form(gold)
    if not form or not gold_form:
        return False
    if form == gold_form:
        return True
    if _spellings_differ(form, gold_form) or not _operations(prediction) <= _operations(gold):
        return False
    if _explained_choice(prediction, gold_form) or _explained_choice(gold, form):
        return True
    if second is not None:
        comma = parse_comma_decimal(form)
        if comma is not None and "." in gold:
            return equal_numbers(comma, second)
        plain = unwrap_text(clean(prediction))
        # "at least 5" and "5 if it rains" hold no value; nor does a bound, and an equation only by algebra.
        if (
            is_hedged(plain)
            or _SPACED_DIGITS.search(plain)
            or (has_relation(plain) and "=" not in plain and not has_relation(gold) and "approx" not in plain)
        ):
            return False
        # An unfinished calculation isn't an answer: else echoing "3 + 4" would be rewarded.
        if is_arithmetic(strip_assignment(clean(prediction))):
            return False
    elif first is not None:
        # With one digit behind the comma, or a space, a gold answer lists two values: 1.2 is not the roots 1,2.
        comma = parse_comma_decimal(unwrap_text(clean(gold)))
        if comma is not None and comma.decimals != 1 and "." in prediction:
            return equal_numbers(first, comma)
    return True if ":" in gold_form and _equal_ratios_or_times(prediction, gold) else None
