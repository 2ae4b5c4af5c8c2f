"""A figure for one column of a two-column paper: its size, fonts and files. It knows nothing of studies.

matplotlib's objects are used without `pyplot`, which would keep figures and choose a window system.
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
WIDTH = 3.3  # inches: one column of a two-column paper
FULL_HEIGHT = 9.0  # inches: the height of a page
GREY, PALE = "#5f6772", "#c9ced6"
FORMATS = ("svg", "png", "pdf")
_MAX_NAME = 26  # characters of a name that fit beside a plot

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # part of matplotlib, so figures are the same everywhere
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
    "pdf.fonttype": 42,  # TrueType: some publishers refuse type 3, the default
    "svg.fonttype": "path",
    "svg.hashsalt": "negaware",  # or the names of clip paths would be random
}
_NO_DATES: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None, "ModDate": None},
    "png": {"Software": None},
}


@contextmanager
def paper_style() -> Iterator[None]:
    """A block with fonts and lines for print, without the user's settings. UntestedVersionError without matplotlib."""
    require_installed(MATPLOTLIB, "a study's figures")
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams  # its type allows literal names alone
        parameters.update(_STYLE)
        yield


def new_figure(height: float) -> Figure:
    """An empty figure, one column wide and `height` inches high, at most a page."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, min(height, FULL_HEIGHT)), layout="constrained")


def write_figure(figure: Figure, stem: Path) -> list[Path]:
    """Writes stem.svg, stem.png and stem.pdf. With one version of matplotlib the bytes are always the same."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # lay out once, not for each file
    written = []
    for kind in FORMATS:
        path = stem.with_suffix(f".{kind}")
        with written_aside(path) as aside:
            figure.savefig(aside, format=kind, metadata=_NO_DATES[kind])
        written.append(path)
    return written


def add_legend(figure: Figure, entries: Sequence[tuple[Any, str]]) -> None:
    """Adds a legend of (artist, text) pairs below all axes, in as many columns as fit the figure's width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for columns in (3, 2, 1):
        legend = figure.legend(
            [artist for artist, _ in entries],
            [str(number) for number in range(len(entries))],
            loc="outside lower center",
            ncols=columns,
        )
        # Texts are set afterwards: the legend would leave out one that begins with an underscore.
        for text, (_, words) in zip(legend.get_texts(), entries, strict=True):
            text.set_text(words)
        width = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width
        if columns == 1 or width <= figure.bbox.width:
            return
        legend.remove()


def legend_line(**style: Any) -> Any:
    """A line that is shown in the legend alone."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def printable(name: str) -> str:
    """A name cut to the length that fits; "?" for characters that the font doesn't have."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    text = "".join(char if char.isprintable() and font.get_char_index(ord(char)) else "?" for char in name)
    return text if len(text) <= _MAX_NAME else f"{text[: _MAX_NAME - 1]}…"
