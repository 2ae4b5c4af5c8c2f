"""The spelling of mathematics: a LaTeX text → the same text in one spelling, and its top-level parts.

Every function takes time linear in the text, looks at characters only and evaluates nothing.
"""

from __future__ import annotations

import re

from negaware.verifiers.hedges import is_hedged

_SYMBOLS = ("times", "cdot", "cdot", "pi", "infty", "le", "ge", "ne", "cup", "in", "pm", "emptyset")
_FRACTIONS = tuple(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True))
_SPELLINGS: dict[str, str | int | None] = {
    **{character: rf"\{name} " for character, name in zip("×⋅·π∞≤≥≠∪∈±∅", _SYMBOLS, strict=True)},
    **{character: rf"\frac{{{above}}}{{{below}}}" for character, above, below in _FRACTIONS},
    **{"°": r"^\circ", "²": "^2", "³": "^3"},
}
_UNICODE = str.maketrans("−–÷，（）。\u00a0\u2009\u202f", "--/,().   ", "€£¥\u200b") | str.maketrans(_SPELLINGS)
_DOUBLED_BACKSLASH = re.compile(r"(?<!\\)\\\\(?=[dtc]?frac|sqrt|begin\{|end\{|left|right|text|boxed|pi\b)")
_SPACING = re.compile(r"(?<!\\)\\(?:[!,;:> ]|q?quad(?![a-z])|(?:thin|med|thick)space)|~")
_DROPPED = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?|[lL]arge|LARGE|[hH]uge|small|tiny|normalsize)(?![a-zA-Z])|(?<!\\)\\[$()\[\]]|\$"
)
_EMPTY_SET = re.compile(r"\\varnothing(?![a-zA-Z])|\\\{ ?\\\}")
_FRACTION = re.compile(r"\\[dtc]frac(?![a-z])|\\over(?=\{)")
_CIRCLE = re.compile(r"\^\{? *+\\circ *+\}?|\\degree|\\deg(?![a-z])")
_GROUPED_COMMA = re.compile(r" ?\{ ?, ?\} ?|(?<=\d),\\! ?(?=\d)")
_SPACES = re.compile(r"\s++")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|mathit|mathsf|bf|rm|operatorname)"
    r" *+\{([^{}]*+)\}"
)
_ROOT = re.compile(r"√ *+(?:(\d++)|\(([^()]*+)\)|\{([^{}]*+)\}|([A-Za-z]))")
_LEADING_SIGN = re.compile(
    r"(?:=>?|[-=]+>|[→⇒]|\\(?:implies|to|Rightarrow|rightarrow|Longrightarrow)(?![a-zA-Z])) *+(?![=<>])"
)
_ENDING = " \t\n.,;:"


def clean(text: str) -> str:
    """The text in one spelling: LaTeX for Unicode symbols, `\\frac` for its variants, no spacing commands, no `$`."""
    if not text.isascii():
        text = _ROOT.sub(lambda root: rf"\sqrt{{{next(filter(None, root.groups()), '')}}}", text)
        text = text.translate(_UNICODE)
    text = _SPACES.sub(" ", text.strip(" \t\r\n*"))
    if "\\" in text:
        text = _DOUBLED_BACKSLASH.sub(r"\\", text)
        text = _GROUPED_COMMA.sub(",", text)
        text = _SPACING.sub(" ", text)
        text = _FRACTION.sub(r"\\frac", text)
        text = _EMPTY_SET.sub(r"\\emptyset", text)
        text = _CIRCLE.sub(r"^\\circ", text)
        text = _DROPPED.sub("", text).replace(r"\%", "%")
    else:
        text = _GROUPED_COMMA.sub(",", text).replace("$", "")
    text = _SPACES.sub(" ", text).strip()
    if text.startswith(("=", "-", "→", "⇒", "\\")) and (sign := _LEADING_SIGN.match(text)):
        text = text[sign.end() :]  # "= 12" completes an equation of the question
    # A full stop after the answer is punctuation; an ellipsis is part of it.
    if text.endswith(("...", "dots")):
        return text
    return text.rstrip(_ENDING + "\\").lstrip(" :")


def unwrap_text(text: str) -> str:
    """`\\text{odd}` → `odd`, likewise `\\mathrm`, `\\textbf` and the like."""
    for _ in range(3):  # nested at most a few deep in practice
        if "{" not in text:
            break
        text = _TEXT_COMMAND.sub(r"\1", text)
    return text


def split_top_level(text: str, separators: str = ",") -> list[str]:
    """The parts between separators that no bracket encloses, stripped; empty ones are dropped."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth <= 0 and character in separators:
            parts.append(text[start:index].strip())
            start = index + 1
    parts.append(text[start:].strip())
    return [part for part in parts if part]


def closing_index(text: str, opening: str = "([{", closing: str = ")]}") -> int | None:
    """The index of the bracket that closes the text's first one; None if there is none."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in opening) - (character in closing)
        if depth == 0:
            return index
    return None


def enclosing_pair(text: str) -> tuple[str, str] | None:
    """The first and last bracket if they enclose the whole text as one pair; `[0,1)` counts as a pair."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]" or closing_index(text) != len(text) - 1:
        return None
    return text[0], text[-1]


def balanced_group(text: str, opening: int, limit: int) -> str | None:
    """What the brace at `opening` encloses, or None if it isn't closed within `limit` characters."""
    end = closing_index(text[opening : opening + limit], "{", "}")
    return None if end is None else text[opening + 1 : opening + end]


_NAME = re.compile(
    r"(?![A-Za-z]*(?:sin|cos|tan|sec|csc|cot|log|ln|exp|sqrt)\b)(?!\|[a-z]\|)(?![a-z](?: [a-z])+$)"
    r"(?:\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|varphi|psi|omega|Delta|Omega"
    r"|overline|angle|measuredangle|triangle|text|mathrm|mathbf|vec|hat|bar|widehat|operatorname)(?![a-z])|[A-Za-z|(])"
    r"[\w\\{}()|',: ]{0,30}"
)
_LONE_NAME = re.compile(r"\\?[A-Za-z]+(?:_\{?\w{1,9}\}?)?|[A-Za-z]\([a-z]\)")
_COMMANDS = re.compile(r"\\[A-Za-z]++")
_EQUALS = re.compile(r"(?<![<>!\\:])=(?!=)")
_RELATION = re.compile(r"[<>=≠≤≥≈]|\\(?:leq?|geq?|neq?|lt|gt|equiv|approx|sim|in|notin|cong)(?![a-zA-Z])")
_QUALIFIER = re.compile(
    r"[, ] *+(?:for|where|with) (?:(?:some|any|all|every|each|an?|the|is|are|be|being|arbitrary|real|complex|rational"
    r"|natural|positive|nonnegative|integers?|numbers?|constants?|values?|of|in|and)\b[ ,]*+|[A-Za-z]\b[ ,]*+"
    r"|\\in\b *+|\\mathbb *+\{?[A-Z]\}?[ ,]*+)++$"
    r"|, *+[a-z] *+\\in *+\\mathbb *+\{?[A-Z]\}?$"
)
_QUALIFIER_START = re.compile(r"[, ](?= *+(?:for|where|with) |, *+[a-z] *+\\in)|,(?= *+[a-z] *+\\in)")


def assignment(text: str) -> tuple[str, str] | None:
    """The name and the value of `x = 5`, `5 = x` or `f(x) = 2x + 3`; None for an equation, a list, a chain."""
    if "=" not in text or split_top_level(text)[1:]:
        return None
    parts = [part.strip() for part in _EQUALS.split(text)]
    if len(parts) != 2 or not all(parts) or _RELATION.search(parts[0] + parts[1]):
        return None
    name, value = parts
    if len(name) == 1 and name in _COMMANDS.sub("", value):
        return None  # x = x + 1 gives x no value
    if _NAME.fullmatch(name) and not is_hedged(name):
        return name, value
    return (value, name) if _LONE_NAME.fullmatch(value) and not is_hedged(value) else None


def strip_assignment(text: str) -> str:
    """`x = 5` → `5`, `f(x) = 2x + 3` → `2x + 3`, `1/3 \\approx 0.33` → `1/3`; an equation stays as it is."""
    if "approx" in text:
        left, _, right = text.partition(r"\approx")
        text = right.strip() if not left.strip() or _NAME.fullmatch(left.strip()) else left.strip()
    if "=" not in text:
        if text.startswith("x \\in ") or text.startswith("x\\in"):
            return text.partition(r"\in")[2].strip()
        return text
    found = assignment(text)
    return found[1] if found else text


def equal_parts(text: str) -> list[str]:
    """The sides of a chain of equals signs such as `A = 1/2 = 0.5`, without the name at its start."""
    parts = [part.strip() for part in _EQUALS.split(text)]
    return parts[1:] if len(parts) > 2 and _NAME.fullmatch(parts[0]) and not is_hedged(parts[0]) else parts


def has_relation(text: str) -> bool:
    """Whether a text is an equation, an inequality or a membership rather than a value."""
    return _RELATION.search(text) is not None


def strip_qualifier(text: str) -> str:
    """`f(x) = cx \\text{ for any constant } c` → `f(x) = cx`. A condition with numbers in it is kept."""
    if " " not in text and r"\in" not in text:
        return text
    plain = unwrap_text(text)
    for opening in _QUALIFIER_START.finditer(plain):
        match = _QUALIFIER.fullmatch(plain, opening.start())
        if match is not None:
            rest = plain[: match.start()].rstrip(" ,")
            return rest if re.search("[A-Za-z]", rest) else text
    return text


_SUBSCRIPT = re.compile(r"_ *+(?:\{[^{}]{0,20}\}|\w)")


def name_different_things(first: str, second: str) -> bool:
    """Whether both texts are assignments to different names: `x = 2` and `y = 2`. `x_1` and `x` count as the same."""
    if "=" not in first or "=" not in second:
        return False
    sides = [clean(text) for text in (first, second)]
    names = [assignment(side) for side in sides]
    left, right = (
        (name[0] if name else side.partition("=")[0]).replace(" ", "") for name, side in zip(names, sides, strict=True)
    )
    if ("_" in left) != ("_" in right):
        left, right = _SUBSCRIPT.sub("", left), _SUBSCRIPT.sub("", right)
    return left != right
