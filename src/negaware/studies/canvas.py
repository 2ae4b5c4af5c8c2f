"""A figure for a column of a two-column paper: its size, its fonts, its files. It knows nothing of studies.

matplotlib is used through its objects alone: `pyplot` would keep figures and choose a window system.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negaware.files import written_aside
from negaware.libraries import require_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATPLOTLIB = "matplotlib>=3.9"
WIDTH = 3.3
"""Inches: a column of a two-column paper."""
FULL_HEIGHT = 9.0
"""Inches: what a page holds."""
GREY, PALE = "#5f6772", "#c9ced6"
FORMATS = ("svg", "png", "pdf")
_MAX_NAME = 26  # characters of a name that fit beside a plot

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same everywhere
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.2,
    "legend.borderpad": 0.1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "lines.scale_dashes": False,
    "text.parse_math": False,  # a variant's name may hold a dollar sign
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType, whole words: type 3, the default, is refused by some publishers
    "svg.fonttype": "path",
    "svg.hashsalt": "negaware",  # else the names of clip paths are drawn at random
}
_NO_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Fonts and lines for print, and nothing of the user's own settings. UntestedVersionError without matplotlib."""
    require_installed(MATPLOTLIB, "a study's figures")
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams  # whose type lists every name
        parameters.update(_STYLE)
        yield


def new_figure(height: float) -> Figure:
    """An empty figure of one column's width, this many inches high (a page's, at most)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, min(height, FULL_HEIGHT)), layout="constrained")


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """The figure as stem.svg, stem.png and stem.pdf: the same bytes each time with one version of matplotlib."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it stays as laid out: once, not for each of the files
    written = []
    for kind in FORMATS:
        path = stem.with_suffix(f".{kind}")
        with written_aside(path) as aside:
            figure.savefig(aside, format=kind, metadata=_NO_DATES[kind])
        written.append(path)
    return written


def add_legend(figure: Figure, entries: Sequence[tuple[Any, str]]) -> None:
    """The legend below all axes, of (artist, words) pairs, in as many columns as the figure's width holds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for columns in (3, 2, 1):
        made = figure.legend(
            [artist for artist, _ in entries],
            [str(number) for number in range(len(entries))],
            loc="outside lower center",
            ncols=columns,
        )
        # Set afterwards: words that begin with an underscore would be left out of it.
        for text, (_, words) in zip(made.get_texts(), entries, strict=True):
            text.set_text(words)
        width = made.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width
        if columns == 1 or width <= figure.bbox.width:
            return
        made.remove()


def printable(name: str) -> str:
    """A name cut to what fits; "?" for characters that the font doesn't have."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    text = "".join(char if char.isprintable() and font.get_char_index(ord(char)) else "?" for char in name)
    return text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 1]}…"
