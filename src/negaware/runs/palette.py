"""How a variant is drawn, in figures and on the report page. Ten successive looks can be told apart in grey too."""

from __future__ import annotations

from dataclasses import dataclass

# The contrast to white, and to the page's dark ground, is at least 3. Any two colours are at least 15 apart (CIE 1976)
# for normal, red-blind and green-blind vision (Machado et al. 2009).
LIGHT = ("#0063a8", "#d1600a", "#0e8147", "#b5407f", "#222831", "#2a9fb5", "#5c0a0a", "#6f73ff", "#42077e")
DARK = ("#6db8f2", "#ff9d5c", "#2fb577", "#f2a5cf", "#e6ebf1", "#e6e21a", "#ef3b3b", "#8b85ff", "#cf35b0")
DASHES = ((), (8, 4), (2, 3), (8, 3, 2, 3), (14, 4), (14, 3, 2, 3, 2, 3), (4, 2))
# The mark in Plotly, as a character, in matplotlib.
MARKS = (
    ("circle", "●", "o"), ("square", "■", "s"), ("triangle-up", "▲", "^"), ("diamond", "◆", "D"), ("cross", "✚", "P"),
    ("x", "✖", "X"), ("triangle-down", "▼", "v"), ("star", "★", "*"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """Colours on light and dark ground, lengths of dashes and gaps (none: a solid line), and the mark of a point."""

    light: str
    dark: str
    dashes: tuple[int, ...]
    symbol: str
    glyph: str
    marker: str


def look(number: int) -> Look:
    """The look of the variant with this number, from 0; the first 504 differ."""
    return Look(
        LIGHT[number % len(LIGHT)],
        DARK[number % len(DARK)],
        DASHES[number % len(DASHES)],
        *MARKS[number % len(MARKS)],
    )
