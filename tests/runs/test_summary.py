from __future__ import annotations

import io

import pytest
from rich.console import Console

from negaware.runs.summary import before_after_table

SUMMARY = {
    "before": {
        "greedy_accuracy": {"value": 0.31, "low": 0.26, "high": 0.36, "num_problems": 320},
        "avg_at_4": {"value": 0.1, "low": 0.08, "high": 0.12, "num_problems": 320},
    },
    "after": {
        "greedy_accuracy": {"value": 0.72, "low": 0.67, "high": 0.77, "num_problems": 320},
        "avg_at_4": {"value": 0.65, "low": 0.61, "high": 0.69, "num_problems": 320},
    },
    "change": {
        "greedy_accuracy": {"value": 0.41, "low": 0.35, "high": 0.47, "num_problems": 320},
        "avg_at_4": {"value": 0.55, "low": 0.51, "high": 0.59, "num_problems": 320},
    },
    "train_seconds": 540.0,
    "total_seconds": 700.0,
    "steps": 60,
}


def test_before_and_after_side_by_side():
    assert before_after_table(SUMMARY).rows == (
        (
            "accuracy at temperature 0",
            "31.0% [26.0%, 36.0%]",
            "72.0% [67.0%, 77.0%]",
            "+41.0 points [+35.0, +47.0]",
            "320",
        ),
        ("avg@4", "10.0% [8.0%, 12.0%]", "65.0% [61.0%, 69.0%]", "+55.0 points [+51.0, +59.0]", "320"),
    )


def test_a_summary_without_paired_changes_shows_them_bare():
    assert [row[3] for row in before_after_table(SUMMARY | {"change": {}}).rows] == ["+41.0 points", "+55.0 points"]


def test_few_problems_carry_a_word_of_caution_below_the_table():
    few = {name: figures | {"num_problems": 30, "num_questions": 10} for name, figures in SUMMARY["after"].items()}
    table = before_after_table(SUMMARY | {"after": few})
    words = "only 10 different questions, so one of them is 10 points: too few to tell small differences"
    assert table.notes == (words,)
    assert table.markdown().endswith(f"|\n\n{words}")
    console = Console(file=io.StringIO(), width=160)
    console.print(table.rich())
    assert words in console.file.getvalue()
    assert before_after_table(SUMMARY).notes == ()


def test_what_was_not_measured_is_a_dash():
    table = before_after_table({"before": {"avg_at_8": {"value": 0.1, "low": None, "high": None}}, "after": {}})
    assert table.rows == (("avg@8", "10.0%", "–", "–", "–"),)


def test_the_same_table_on_a_terminal_and_as_markdown():
    table = before_after_table(SUMMARY)
    console = Console(file=io.StringIO(), width=120)
    console.print(table.rich())
    lines = table.markdown().splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[3] == "| avg@4 | 10.0% [8.0%, 12.0%] | 65.0% [61.0%, 69.0%] | +55.0 points [+51.0, +59.0] | 320 |"
    printed = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines[3] in printed  # what is printed can be pasted
    for row in table.rows:
        assert all(cell in console.file.getvalue() for cell in row)


@pytest.mark.parametrize("cell", ["a|b"])
def test_markdown_cells_cannot_break_the_table(cell):
    from negaware.runs.summary import Table

    assert Table("", ("run",), ((cell,),)).markdown().splitlines()[2] == "| a\\|b |"


def test_latex_escapes_what_has_a_meaning_there():
    from negaware.runs.summary import Table, latex_text

    assert latex_text("a_b & 5% $1 #2 {x}") == r"a\_b \& 5\% \$1 \#2 \{x\}"
    assert latex_text("\\~^") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}"
    assert latex_text("-1.5 points [-2.0, +.5], run-3, 1e-5") == (
        r"$-$1.5 points {[}$-$2.0, +.5{]}, run-3, 1e-5"  # a minus, but no hyphen within a word
    )
    assert latex_text("ω < 1 | “a” – b") == r"$\omega$ $<$ 1 $|$ ``a'' -- b"
    lines = Table("100 %", ("run", "p"), (("*a", "[1]"),), ("x_y",)).latex().splitlines()
    assert r"\caption{100 \%}" in lines
    assert r"{*}a & {[}1{]} \\" in lines  # as they stand they would be options of the line before
    assert lines[-2:] == [r"\par\smallskip\footnotesize x\_y", r"\end{table*}"]
