"""The slow path: symbolic equality of two answers with math-verify, for worker processes only.

Each side is parsed to exactly one value; sets, tuples and intervals are compared as a whole. A hostile text may make it
run without end or fill the memory, so only a process that can be killed, with limits, calls it.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import Basic, Equality, Expr, Float, N, Sum, cancel
from sympy.core.function import AppliedUndef
from sympy.core.numbers import ImaginaryUnit
from sympy.matrices import MatrixBase

from negaware.verifiers.equivalence import MAX_CHARACTERS, fast_verdict, is_arithmetic, text_form
from negaware.verifiers.intervals import as_intervals
from negaware.verifiers.latex import (
    assignment,
    clean,
    closing_index,
    enclosing_pair,
    equal_parts,
    has_relation,
    split_top_level,
    strip_assignment,
    strip_qualifier,
)
from negaware.verifiers.numbers import common_unit, is_rounding, parse_clean_number

_MAX_DEPTH = 40
_MAX_EXPONENT = 5000
_MAX_FACTORIAL = 1000
_NOISE = Fraction(1, 10**30)
_DIGITS = 40  # of numeric evaluation: twice double precision, against cancellation

_AND = re.compile(r"\\(?:text|mbox|mathrm) *+\{ *+,? *+(?:and|or) *+\}|\b(?:and|or)\b|(?<=[)\d}])or(?=[(\dA-Za-z\\])|;")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|sec|csc|cot|log|ln|exp|arcsin|arccos|arctan|pi|infty)(?![a-z])")
_PLAIN_SQRT = re.compile(r"(?<![A-Za-z])\\?sqrt *+\(|√ *+\(")
_BARE_FRACTION = re.compile(r"\\frac *+(\\[a-zA-Z]++|\w) *+(\\[a-zA-Z]+|\w)")
_BARE_EXPONENT = re.compile(r"\^ *+(-?\d++)")
_NAMED_CURVE = re.compile(r"(?:y|[A-Za-z]\([a-z]\)) *=(?!=)")
_COMPUTES = re.compile(r"[\w)}] *+(?:[-+*/]|\\cdot|\\times|\\div) *+[\w(\\{]")
_SCRIPT = re.compile(r"[\^_] *+(?:\{[^{}]*+\}|\([^()]*+\))")
_ROUNDED = 4  # digits after the point of a gold answer that may stand for an exact form
_TRAILING_UNIT = re.compile(
    r"(?:\\(?:text|mbox|mathrm) *+\{[^{}]*+\}|(?<=[ }])[A-Za-z]{2,}+)(?: ?\^ ?\{? ?[23] ?\}?)?$"
)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|sec|csc|cot)")
_EXPONENT = re.compile(r"\^ *+\{? *+[-+]? *+(\d++)|\*\* *+(\d++)")
_TOWER = re.compile(r"\^ *+\{[^{}^]*+\^ *+\{?[^{}^]*+\^|\^ *+\{? *+\(? *+\d++ *+\)? *+\^ *+\{? *+\d")
_FACTORIAL = re.compile(r"(?<!\d)(\d++) *+\)*+ *+!|\^[^=,]{0,40}!|! *+\)? *+!")
_MARKED_TEXT = re.compile(r"\\(?:text|mbox|mathrm)|(?<![A-Za-z])[A-Za-z]{3,}+(?!\()(?<!sin)(?<!cos)(?<!tan)")
_INTEGER = re.compile(r"(?<!\d)\d{1000}")
_MATRIX = re.compile(
    r"[\[(]? *+\\begin\{([pbvB]?matrix|array)\} *+(?:\{[clr| ]++\})?(.*?)\\end\{\1\} *+[\])]?", re.DOTALL
)


def is_too_big(text: str) -> bool:
    """Whether evaluating a text could use up the machine: towers, huge powers and factorials, deep nesting."""
    if len(text) > MAX_CHARACTERS or _INTEGER.search(text) or _TOWER.search(text):
        return True
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if depth > _MAX_DEPTH:
            return True
    if any(int((match[1] or match[2])[:9]) > _MAX_EXPONENT for match in _EXPONENT.finditer(text)):
        return True
    return any(match[1] is None or int(match[1][:9]) > _MAX_FACTORIAL for match in _FACTORIAL.finditer(text))


def _latex(text: str) -> str:
    """A plain or LaTeX expression in the spelling that math-verify's LaTeX grammar reads."""
    text = text.replace("**", "^")
    for _ in range(5):
        match = _PLAIN_SQRT.search(text)
        rest = text[match.end() - 1 :] if match else ""
        end = closing_index(rest, "({", ")}")
        if match is None or end is None:
            break
        text = f"{text[: match.start()]}\\sqrt{{{rest[1:end]}}}{rest[end + 1 :]}"
    text = _BARE_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _BARE_EXPONENT.sub(r"^{\1}", text)
    text = _FUNCTION.sub(r"\\\1 ", text)
    if _TRIGONOMETRY.search(text):
        return text.replace(r"^\circ", r"\cdot\frac{\pi}{180}")
    return text.replace(r"^\circ", "")


def _parse(text: str) -> Any | None:
    """The one value of a text, or None. It uses the LaTeX grammar only: math-verify's other parser evaluates Python."""
    normalization = NormalizationConfig(
        basic_latex=True,
        units=_MARKED_TEXT.search(text)
        is not None,  # only units marked as text are dropped: in 5 - 5c the c is no cent
        malformed_operators=True,
        nits=True,
        boxed="none",
        equations=False,
    )
    config = (LatexExtractionConfig(normalization_config=normalization),)
    found = parse(f"${_latex(text)}$", config, fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if len(found) == 1 and isinstance(found[0], (Basic, MatrixBase)) else None


def _numeric_verdict(first: Any, second: Any, texts: tuple[str, str]) -> bool | None:
    """Equality of two constants to forty digits, or of a long decimal and what it rounds; None: no constants."""
    if not all(isinstance(value, Expr) and value.is_number for value in (first, second)):
        return None
    values = [N(value, _DIGITS) for value in (first, second)]
    if not all(value.is_number and value.is_finite for value in values):
        return None
    scale = max(abs(values[0]), abs(values[1]))
    has_float = first.has(Float) or second.has(Float)
    if abs(values[0] - values[1]) <= scale * (10**-12 if has_float else Fraction(1, 10**30)):
        return True
    if scale < _NOISE:
        return None
    for text, exact in ((texts[0], values[1]), (texts[1], values[0])):
        decimal = parse_clean_number(text)
        if decimal is not None and exact.is_real and is_rounding(decimal, Fraction(str(exact))):
            return True
    return False if not has_float or all(parse_clean_number(text) is None for text in texts) else None


def _agree(first: Expr, second: Expr, values: dict[Any, Any]) -> bool | None:
    """Whether two expressions agree at a point; None where either isn't a finite number there."""
    left, right = N(first.subs(values), _DIGITS), N(second.subs(values), _DIGITS)
    if not all(value.is_number and value.is_finite for value in (left, right)):
        return None
    scale = max(abs(left), abs(right))
    if scale < _NOISE:
        return None  # an error of cancellation, or a tiny constant: algebra decides
    tolerance = Fraction(1, 10**12) if first.has(Float) or second.has(Float) else Fraction(1, 10**25)
    return bool(abs(left - right) <= tolerance * scale)


def _sampled_verdict(first: Any, second: Any) -> bool | None:
    """Equality of two functions of the same variables at fixed points; None if that doesn't decide it."""
    if not all(isinstance(value, Expr) and not value.has(AppliedUndef, Sum) for value in (first, second)):
        return None
    imaginary = {symbol: ImaginaryUnit() for symbol in first.free_symbols | second.free_symbols if symbol.name == "i"}
    first, second = first.subs(imaginary), second.subs(imaginary)
    names = sorted({symbol.name for symbol in first.free_symbols | second.free_symbols})
    if len(names) > 8:
        return None
    if not names:
        return _agree(first, second, {}) if imaginary else None
    agreements: list[bool | None] = []
    for sign in (1, 1, -1):
        points = {name: Fraction(sign * (37 + 11 * k + 5 * len(agreements)), 29) for k, name in enumerate(names)}
        values = {symbol: points[symbol.name] for symbol in first.free_symbols | second.free_symbols}
        agreements.append(_agree(first, second, values))
    if False in agreements[:2]:
        return False
    # √(x²) and x agree for positive values only: algebra decides.
    return True if agreements == [True, True, True] else None


def _equations_verdict(first: Any, second: Any) -> bool | None:
    """Whether two equations have the same factors; None if they differ by factors of one term, as xy = 1 and y = 1/x.

    (2x - y)^2 = 0 and 2x - y = 0 are different.
    """
    ratio = cancel((first.lhs - first.rhs) / (second.lhs - second.rhs))
    if ratio.is_number:
        return True if ratio.is_finite and ratio.is_nonzero else None
    return False if any(part.is_Add and part.free_symbols for part in ratio.as_numer_denom()) else None


def _settled(text: str) -> str:
    """`A = 1/2 = 0.5` and `3 + 4 = 7` → their last part, where all parts are equal; any other text as it is."""
    parts = equal_parts(text) if "=" in text and assignment(text) is None else []
    if len(parts) < 2 or not all(parts) or any(map(has_relation, parts)):
        return text
    values = [_parse(part) for part in parts]
    if any(value is None for value in values):
        return text
    equal = (
        _numeric_verdict(value, values[-1], ("", "")) or _sampled_verdict(value, values[-1]) for value in values[:-1]
    )
    return parts[-1] if all(equal) else text


def _scalar_verdict(prediction: str, gold: str) -> bool:
    prediction, gold = _settled(prediction), _settled(gold)
    if ("=" in prediction) != ("=" in gold):
        prediction, gold = strip_assignment(prediction), strip_assignment(gold)
        if ("=" in prediction) != ("=" in gold):
            return False  # an equation is no value: it may restate the question
    if _NAMED_CURVE.match(prediction) and _NAMED_CURVE.match(gold):
        # A curve is the same with either name, y or f(x).
        prediction, gold = strip_assignment(prediction), strip_assignment(gold)
    fast = fast_verdict(prediction, gold)
    if fast is not None:
        return fast
    plain = parse_clean_number(gold)
    if plain is not None and (plain.decimals or 0) < _ROUNDED and _COMPUTES.search(_SCRIPT.sub("", prediction)):
        return False  # 2 + √9 is not accepted for 5, but 3 + 2√2 is for 5.828427
    predicted, expected = _parse(prediction), _parse(gold)
    if predicted is None or expected is None:
        return False
    numeric = _numeric_verdict(predicted, expected, (prediction, gold))
    if numeric is not None:
        return numeric
    sampled = _sampled_verdict(predicted, expected)
    if sampled is not None:
        return sampled
    if isinstance(predicted, Equality) and isinstance(expected, Equality):
        equations = _equations_verdict(predicted, expected)
        if equations is not None:
            return equations
    return bool(verify([expected], [predicted], timeout_seconds=None))


def _expand_plus_minus(items: list[str]) -> list[str]:
    expanded = []
    for item in items:
        if item.count(r"\pm") == 1:
            expanded += [item.replace(r"\pm", "+").lstrip("+ "), item.replace(r"\pm", "-")]
        else:
            expanded.append(item)
    return expanded


def _structure(text: str) -> tuple[str, list[str]]:
    """A text's shape and parts: a set, an unordered list, a tuple named by its brackets, or a scalar."""
    matrix = _MATRIX.fullmatch(strip_assignment(text))
    if matrix and r"\begin" not in matrix[2]:
        rows = [row.split("&") for row in matrix[2].split(r"\\") if row.strip()]
        entries = [entry.strip() for row in rows for entry in row]
        columns = len(entries) // len(rows) if rows else 0
        # A matrix of one column is a vector; a wider one keeps its shape.
        return ("vector" if columns == 1 and len(rows) > 1 else f"matrix of {columns}"), entries
    solutions = [split_top_level(solution) for solution in split_top_level(text, ";")]
    if len(solutions) > 1 and all(len(names) > 1 and all(map(_name, names)) for names in solutions):
        # p=5, q=2; p=7, q=2 is a list of two pairs.
        return "list", [f"({','.join(strip_assignment(item) for item in names)})" for names in solutions]
    joined = _AND.sub(",", text)
    body = strip_assignment(joined)
    if body.startswith(r"\{") and body.endswith(r"\}"):
        return "set", _expand_plus_minus(split_top_level(body[2:-2]))
    if body.startswith("{") and closing_index(body, "{", "}") == len(body) - 1:
        body = joined = body[1:-1]
    pair = enclosing_pair(body)
    parts = split_top_level(body[1:-1]) if pair else []
    if pair and len(parts) > 1:
        return pair[0] + pair[1], parts
    items = _expand_plus_minus(split_top_level(joined))
    return ("list", items) if len(items) > 1 else ("scalar", items)


def _name(item: str) -> str:
    return item.partition("=")[0].strip() if "=" in item else ""


def _unordered_match(predictions: list[str], golds: list[str]) -> bool:
    """Whether each prediction equals another gold answer; there are as many of both."""
    remaining = list(golds)
    for prediction in predictions:
        match = next((gold for gold in remaining if _verdict(prediction, gold)), None)
        if match is None:
            return False
        remaining.remove(match)
    return True


def _distinct(items: list[str]) -> list[str]:
    """The items without those spelt like an earlier one."""
    return list({text_form(item): item for item in items}.values())


def _parts_match(shape: str, predictions: list[str], golds: list[str], gold_shape: str) -> bool:
    # A value counts once in a set, but in a list as often as it is written: 1, 2, 2 has a double root.
    predictions = _distinct(predictions) if shape == "set" else predictions
    golds = _distinct(golds) if gold_shape == "set" else golds
    if len(predictions) != len(golds):
        return False
    named = {_name(item) for item in predictions} | {_name(item) for item in golds}
    names_on_one_side = "" in named and len(named) > 2
    if shape in ("set", "list") and gold_shape in ("set", "list") and not names_on_one_side:
        return _unordered_match(predictions, golds)
    if shape != gold_shape and any(kind.startswith("matrix") for kind in (shape, gold_shape)):
        return False  # no list of its entries is a matrix, and no row a column
    tuples = {shape, gold_shape} - {"list", "vector"}
    if tuples == {"()", "[]"} and len(golds) > 2:
        tuples = {"()"}  # with three parts it is no interval but a vector in other brackets
    return len(tuples) < 2 and all(map(_verdict, predictions, golds))


def _verdict(prediction: str, gold: str) -> bool:
    shape, predictions = _structure(prediction)
    gold_shape, golds = _structure(gold)
    if shape == gold_shape == "scalar":
        return _scalar_verdict(prediction, gold)
    if "scalar" not in (shape, gold_shape):
        if len(predictions) <= 20 and _parts_match(shape, predictions, golds, gold_shape):
            return True
        if {shape, gold_shape} <= {"set", "list"} or shape == gold_shape or len(predictions) != len(golds):
            return False
    if (shape == "list") is not (gold_shape == "list"):
        return False
    return _scalar_verdict(prediction, gold)


def _without_unit(text: str) -> tuple[str, str | None]:
    """`2\\pi cm` → `2\\pi` and cm. A unit of one letter must be marked as text, for it may be a variable."""
    match = _TRAILING_UNIT.search(text)
    unit = common_unit(match[0]) if match and match.start() else None
    return (text[: match.start()].rstrip(), unit) if match and unit else (text, None)


def symbolic_verdict(prediction: str, gold: str) -> bool:
    """Whether two answers are equal. For worker processes only: it may run for long and raise anything."""
    if is_too_big(prediction) or is_too_big(gold):
        return False  # `fast_verdict` has compared the spelling
    prediction, gold = strip_qualifier(clean(prediction)), strip_qualifier(clean(gold))
    prediction, unit = _without_unit(prediction)
    gold, gold_unit = _without_unit(gold)
    if unit and gold_unit and unit != gold_unit:
        return False
    if has_relation(prediction) or has_relation(gold):
        prediction, gold = as_intervals(prediction, gold)
    if is_arithmetic(strip_assignment(prediction)) and parse_clean_number(strip_assignment(gold)) is not None:
        return False
    return _verdict(prediction, gold)


def is_parseable(gold: str) -> bool:
    """Whether a gold answer has a value to compare with, rather than only a spelling. For worker processes only."""
    if is_too_big(gold):
        return False
    text = clean(gold)
    return all(parse_clean_number(part) is not None or _parse(part) is not None for part in _structure(text)[1])
