"""Plain numbers: one text → its exact value, without evaluating anything.

It reads integers, thousands separators, decimals, fractions, mixed numbers, scientific notation, and the signs,
currencies, degrees, percents and units around them; nothing else: no sums, powers or roots.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from negaware.verifiers.hedges import is_hedged
from negaware.verifiers.latex import clean, strip_assignment, unwrap_text

_MAX_CHARACTERS = 120
_MAX_EXPONENT = 400  # 10**400 is quickly computed and larger than any physical constant
_MIN_ROUNDED_DIGITS = 4  # 0.333 is too coarse an answer to 1/3, 0.3333 is accepted


class Number(NamedTuple):
    """An exact value; `decimals` is how many digits its text had after the point (None: not a decimal).

    `unit` is the unit that followed it, as `common_unit` spells it; None: no unit, or a rare one.
    """

    value: Fraction | int
    percent: bool = False
    decimals: int | None = None
    unit: str | None = None


_INTEGER = re.compile(r"[-+]?\d{1,100}")
_DIGITS = r"(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?:[ ]\d{3})+)(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_PART = r"(?:\{ *([-+]?[\d.,]+) *\}|(\d))"
_NUMBER = re.compile(
    rf"""(?P<sign>[-+]?)\ *
    (?:(?P<whole>\d+)(?:\ *(?=\\frac)|\ +(?=\d+/\d)))?            # the whole part of a mixed number
    (?:\\frac\ *{_PART}\ *{_PART}
      |(?P<decimal>{_DECIMAL})
       (?:\ */\ *(?P<divisor>[-+]?{_DECIMAL})
         |[eE](?P<exponent>[-+]?\d+)
         |\ *(?:\\times|\\cdot|\*|x)\ *10\ *\^\ *(?:\{{\ *(?P<braced>[-+]?\ *\d+)\ *\}}|(?P<raised>-?\d+)))?
    )
    (?P<rest>.*)""",
    re.VERBOSE | re.DOTALL,
)
_PERIODIC = re.compile(r"([-+]?)(\d*+)\.(\d*+) ?\\(?:overline|bar|dot|dots) ?(?:\{(\d++)\}|(\d))")
_MULTIPLIERS = {
    "hundred": 2,
    "thousand": 3,
    "million": 6,
    "billion": 9,
    "trillion": 12,
    "百": 2,
    "千": 3,
    "万": 4,
    "亿": 8,
}
_COMMA_DECIMAL = re.compile(r"([-+]?\d++),(\d++)")
_POWER = re.compile(r"\^ *+\{? *+[23] *+\}?$")
_GLUED_UNIT = re.compile(
    r"(?:[cdkmµ]m|km/h|mph|kg|mg|kB|[MG]B|mL|ml|cc|lbs?|oz|ft|in|sq|hours?|hrs?|min(?:ute)?s?|sec(?:ond)?s?|days?"
    r"|weeks?|months?|years?|degrees?|dollars?|cents?|units?|inch(?:es)?|feet|yards?|miles?|met(?:er|re)s?|pounds?)"
)
_UNITS = {
    spelling: names.split()[0]
    for names in (
        "mm millimeter millimeters millimetre millimetres",
        "cm centimeter centimeters centimetre centimetres",
        "m meter meters metre metres",
        "km kilometer kilometers kilometre kilometres",
        "inch in inches",
        "foot ft feet",
        "yard yd yards",
        "mile mi miles",
        "mg milligram milligrams",
        "g gram grams",
        "kg kilogram kilograms",
        "pound lb lbs pounds",
        "ounce oz ounces",
        "second s sec secs seconds",
        "minute min mins minutes",
        "hour h hr hrs hours",
        "day days",
        "week weeks",
        "month months",
        "year years",
        "cent cents",
        "dollar dollars",
        "degree degrees",
        "radian radians rad",
    )
    for spelling in names.split()
}
_UNIT = re.compile(r"(square|sq|cubic)?\.? ?([a-zµ]+)(?: ?(?:/|per) ?([a-z]+))? ?(?:\^ ?\{? ?([23]) ?\}?)?")
_CURRENCIES = {"\\$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
_NOT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "pi sqrt sin cos tan log ln exp and or to mod if for when where is not plus minus times choose over i e x y n "
        "infty hundred thousand million billion trillion dozen squared cubed factorial pair pairs mod modulo to either "
        "neither nor never cannot no least most more less fewer than above below under between maybe perhaps "
        "possibly unless except wrong incorrect false rejected",
    )
)
_SAYS_MORE = re.compile(
    r"\d|\b(?:and|plus|minus|times|over|under|to|mod|modulo|squared|cubed|factorial|hundred|thousand|million|billion"
    r"|trillion|dozen|pairs?|choose|root|pi)\b|[-+*/^=<>!?]"
)
_ORDINAL = re.compile(r"\^ *+\{? *+(?:\\(?:text|mathrm|mbox))? *+\{? *+(?:st|nd|rd|th) *+\}? *+\}?")
_WORDS = re.compile(r"[A-Za-zµ]+(?:[ /][A-Za-zµ]+){0,4}")


def _fraction(text: str) -> Fraction | int | None:
    """A decimal text → its value; commas and spaces separate thousands."""
    whole, _, decimals = text.replace(",", "").replace(" ", "").partition(".")
    digits = whole + decimals
    if not digits or digits in "+-":
        return None
    return Fraction(int(digits), 10 ** len(decimals)) if decimals else int(digits)


def _is_percent_or_unit(rest: str) -> bool | None:
    """True: a percent sign follows; False: nothing or a unit does; None: something that isn't a unit."""
    bare = rest.strip()
    if not bare:
        return False
    if bare[0] == "%":
        return True if not bare[1:].strip(" .)") else None
    bare = _ORDINAL.sub("", bare.removeprefix(r"^\circ"), count=1).strip()
    if bare in ("", "C", "F", r"\mathrm{C}", r"\text{C}"):
        return False
    in_text = bare.startswith((r"\text", r"\mbox", r"\mathrm", r"\ "))
    words = _POWER.sub("", unwrap_text(bare)).strip(" .").removesuffix("^").strip()
    if words.lower() in ("percent", "pct", "percentage", "percents", "per cent"):
        return True
    if in_text:
        # `17\text{ any text}` means 17, but `2\text{ or }3` is two values.
        return None if _SAYS_MORE.search(words) or is_hedged(words) else False
    if not _WORDS.fullmatch(words) or not _NOT_UNITS.isdisjoint(words.lower().replace("/", " ").split()):
        return None
    if rest[0] == " ":
        return False
    return False if _GLUED_UNIT.fullmatch(words) or (len(words) > 4 and " " not in words) else None


def _periodic(match: re.Match[str]) -> Number:
    """0.1\\overline{6} → 1/6."""
    sign, whole, fixed, period = match[1], match[2], match[3], match[4] or match[5]
    nines = (10 ** len(period) - 1) * 10 ** len(fixed)
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed)) + Fraction(int(period), nines)
    return Number(-value if sign == "-" else value)


def common_unit(text: str) -> str | None:
    """The unit in a text, in one spelling (`square meters` → `m^2/`); None: no unit, or a rare one."""
    if text.strip() in (r"^\circ", r"^{\circ}"):
        return "degree^1/"
    match = _UNIT.fullmatch(unwrap_text(text).strip(" .").lower())
    if match is None or match[2] not in _UNITS or (match[3] and match[3] not in _UNITS):
        return None
    power = match[4] or {"square": "2", "sq": "2", "cubic": "3"}.get(match[1] or "", "1")
    return f"{_UNITS[match[2]]}^{power}/{_UNITS.get(match[3] or '', '')}"


def parse_clean_number(text: str) -> Number | None:
    """The value of a text that `clean` has made, or None if it isn't a plain number."""
    if _INTEGER.fullmatch(text):
        return Number(int(text))
    if not text or len(text) > _MAX_CHARACTERS:
        return None
    if text[0] == "{" and text[-1] == "}":
        text = text[1:-1].strip()
    if "\\" in text and (periodic := _PERIODIC.fullmatch(text)):
        return _periodic(periodic)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    multiplier, _, behind = unwrap_text(match["rest"]).strip().partition(" ") if match["rest"] else ("", "", "")
    if multiplier in _MULTIPLIERS:
        number = parse_clean_number(f"{text[: match.start('rest')].strip()} {behind.strip()}".strip())
        return number and number._replace(value=number.value * 10 ** _MULTIPLIERS[multiplier], decimals=None)
    percent = _is_percent_or_unit(match["rest"])
    power = (match["exponent"] or match["braced"] or match["raised"] or "0").replace(" ", "")
    if percent is None or len(power) > 7 or abs(exponent := int(power)) > _MAX_EXPONENT:
        return None
    decimals = None
    if match["decimal"] is None:
        _, _, above_braced, above_digit, below_braced, below_digit, *_ = match.groups()
        above, below = _fraction(above_braced or above_digit), _fraction(below_braced or below_digit)
    else:
        above = _fraction(match["decimal"])
        below = _fraction(match["divisor"]) if match["divisor"] else 1
        if match["divisor"] is None and "." in match["decimal"]:
            decimals = len(match["decimal"].partition(".")[2]) - exponent
    if above is None or not below:
        return None
    value = Fraction(above, below) if below != 1 else above
    if exponent:
        value *= Fraction(10) ** exponent
    if match["whole"]:
        if value < 0 or match["whole"].startswith("0") or match["exponent"]:
            return None
        value += int(match["whole"])
    unit = common_unit(match["rest"]) if match["rest"] else None
    return Number(-value if match["sign"] == "-" else value, percent, decimals, unit)


def parse_number(text: str) -> Number | None:
    """The value of a plain number (`$1{,}000$`, `x = -\\frac12`, `5\\text{ cm}`, `4e33`); None for any other text."""
    if _INTEGER.fullmatch(text):
        return Number(int(text))
    if len(text) > 2 * _MAX_CHARACTERS:
        return None
    number = parse_clean_number(strip_assignment(clean(text)))
    currency = _CURRENCIES.get(text[:2]) or _CURRENCIES.get(text[:1])
    return number._replace(unit=common_unit(currency) or currency) if number and currency else number


def parse_comma_decimal(text: str) -> Number | None:
    """`1,22` read with a decimal comma; whether it is one depends on the answer that it is compared with."""
    match = _COMMA_DECIMAL.fullmatch(text)
    if match is None or len(text) > _MAX_CHARACTERS:
        return None
    value = _fraction(f"{match[1]}.{match[2]}")
    return None if value is None else Number(value, False, len(match[2]))


def is_rounding(decimal: Number, exact: Fraction | int) -> bool:
    """Whether a decimal of at least four significant digits is `exact`, rounded or cut off after as many digits."""
    decimals = decimal.decimals
    if decimals is None:
        return False
    scaled = abs(decimal.value * Fraction(10) ** decimals)  # an integer: the digits as written
    if scaled < 10 ** (_MIN_ROUNDED_DIGITS - 1) or (decimal.value < 0) != (exact < 0):
        return False
    difference = abs(exact * Fraction(10) ** decimals) - scaled
    return Fraction(-1, 2) <= difference < 1


def _terminates(value: Fraction | int) -> bool:
    """Whether the value has finitely many decimals: then its denominator divides a power of ten."""
    return pow(10, value.denominator.bit_length(), value.denominator) == 0


def equal_numbers(first: Number, second: Number) -> bool:
    """Whether two numbers are exactly equal, where 28 % is 28 or 0.28, and a long decimal is any fraction it rounds.

    Only a fraction with infinitely many decimals may be rounded. A unit may be left out, but 7 days are not 7 hours.
    """
    if first.unit and second.unit and first.unit != second.unit:
        return False
    if (first.percent and second.unit) or (second.percent and first.unit):
        return False
    if first.value == second.value:
        return True
    if first.percent != second.percent:
        percent, plain = (first, second) if first.percent else (second, first)
        return percent.value == 100 * plain.value
    for decimal, exact in ((first, second), (second, first)):
        if decimal.decimals is not None and exact.decimals is None and not _terminates(exact.value):
            return is_rounding(decimal, exact.value)
    return False
