"""A study's tables: what stands in them and below them, and LaTeX that is whole."""

import re
from dataclasses import replace

import pytest
from made_up_study import study

from negaware.studies.results import StudyResults
from negaware.studies.statistics import comparisons, variant_figures
from negaware.studies.tables import differences_table, variants_table, write_tables

RFT = [[0.25, 0.5, 0.75, 0.5] * 20, [0.5, 0.5, 0.75, 0.25] * 20, [0.25, 0.75, 0.5, 0.5] * 20]
NFT = [[0.75, 1.0, 1.0, 0.75] * 20, [1.0, 0.75, 1.0, 0.75] * 20, [0.75, 1.0, 0.75, 1.0] * 20]


def test_every_variant_has_a_row_and_every_figure_a_column():
    whole = study({"rft": RFT, "nft": NFT})
    table = variants_table(whole)
    assert table.columns[:3] == ("variant", "seeds", "avg@4 [95%]")
    assert [row[:2] for row in table.rows] == [("before training", "–"), ("rft", "3"), ("nft", "3")]
    assert table.rows[0][2].startswith("25.0% [")
    nft = variant_figures(whole)[1]
    assert table.rows[2][2] == str(nft.accuracy["avg_at_4"]) != "87.5%"
    assert table.rows[2][3:] == (
        "21.0% [18.5%, 23.5%]",
        "0.059 [0.034, 0.084]",
        "39.5",
        "51.0% [48.5%, 53.5%]",
        "61 [59, 63]",
        "110 [85, 135]",
    )


def test_variants_that_began_otherwise_have_each_a_row_before_training():
    whole = study({"rft": RFT, "nft": NFT})
    runs = tuple(
        replace(run, before={"avg_at_4": dict.fromkeys(run.after["avg_at_4"], 0.75)}) if run.variant == "nft" else run
        for run in whole.runs
    )
    table = variants_table(replace(whole, runs=runs))
    shown = [(row[0], row[2].split()[0]) for row in table.rows[:2]]
    assert shown == [("rft, before training", "25.0%"), ("nft, before training", "75.0%")]


def test_seeds_that_began_otherwise_share_a_row_before_training():
    """All variants of a seed began alike, another seed's with another model, elsewhere."""
    whole = study({"rft": RFT, "nft": NFT})

    def elsewhere(run, *, seed, machine):
        if run.seed != seed:
            return replace(run, machine="one")
        return replace(run, machine=machine, before={"avg_at_4": dict.fromkeys(run.after["avg_at_4"], 0.75)})

    table = variants_table(replace(whole, runs=tuple(elsewhere(run, seed=2, machine="two") for run in whole.runs)))
    assert [row[0] for row in table.rows] == ["before training", "rft", "nft"]
    assert float(table.rows[0][2].split("%")[0]) == pytest.approx(100 * (0.25 + 0.25 + 0.75) / 3, abs=0.1)
    assert "one: seeds 0, 1; two: seeds 2." in table.notes
    assert "different kinds of machine" not in " ".join(table.notes)

    mixed = (elsewhere(run, seed=2, machine="two" if run.variant == "nft" else "one") for run in whole.runs)
    notes = " ".join(variants_table(replace(whole, runs=tuple(mixed))).notes)
    assert "seed 2: its variants ran on different kinds of machine" in notes


def test_a_difference_says_what_it_was_tested_for():
    whole = study({"rft": RFT, "nft": NFT}, margins={"avg_at_4": 0.02})
    table, (found,) = differences_table(whole), comparisons(whole)
    (row,) = table.rows
    assert row[:4] == ("nft", "avg@4", "3", found.change.points)
    assert row[6:] == (*(f"{p:.3f}" if p >= 0.001 else "<0.001" for p in (found.p_value, found.p_holm)),
                       f"{found.equivalence:.3f}", f"{found.equivalence_holm:.3f}", "better")  # fmt: skip
    notes = " ".join(table.notes)
    assert "avg@4: “matches” is a difference within 2 points." in notes
    assert "this margin is below the noise of nft" in notes
    assert "prove nothing" not in notes
    assert "no margin was chosen" in " ".join(differences_table(study({"rft": RFT, "nft": NFT})).notes)


def test_a_margin_chosen_after_results_is_said():
    """Results that don't say what it was when they were made are not counted."""
    whole = study({"rft": RFT, "nft": NFT}, margins={"avg_at_4": 0.02})
    known = [{"avg_at_4": 0.02}, {"avg_at_4": 0.01}, {}, None, None, {"avg_at_4": 0.02}]
    runs = [replace(run, margins=margins) for run, margins in zip(whole.runs, known, strict=True)]
    late = "avg@4: this margin was chosen or changed after 2 of 6 results had been made; it should"
    assert late in " ".join(differences_table(replace(whole, runs=tuple(runs))).notes)
    assert "chosen or changed" not in " ".join(differences_table(whole).notes)


def test_few_seeds_and_missing_ones_are_said():
    tables = {"rft": RFT, "nft": NFT[:2], "grpo": NFT[:1], "later": []}
    whole = study(tables, seeds={"rft": [0, 1, 2], "nft": [0, 2], "grpo": [7], "later": []})
    differences = differences_table(whole)
    assert [row[0] for row in differences.rows] == ["nft"]
    assert differences.rows[0][6:] == ("–",) * 5
    assert differences.notes[:2] == (
        "nft: fewer than 3 seeds. These differences prove nothing.",
        "grpo, later: no finished run yet with a seed that rft has finished too.",
    )
    assert "nft: over the seeds that both have, 0, 2." in differences.notes
    assert {"nft: 2 of 4 seeds are done.", "later: 0 of 4 seeds are done."} <= set(variants_table(whole).notes)


def test_few_questions_carry_a_word_of_caution():
    few = study({"rft": [row[:20] for row in RFT], "nft": [row[:20] for row in NFT]})
    for table in (variants_table(few), differences_table(few)):
        assert table.notes[-1].startswith("only 20 problems, so one of them is 5 points")


@pytest.mark.parametrize("name", ["50% & more_", "[a]", "ω={1-r}\\", "a|b"])
def test_the_latex_is_whole_whatever_variants_are_called(name, tmp_path):
    """Braces and environments are closed, and every row has as many cells as there are columns."""
    whole = study({"rft": RFT, name: NFT}, margins={"avg_at_4": 0.02})
    write_tables(whole, tmp_path)
    tables = (variants_table(whole), differences_table(whole))
    text = (tmp_path / "tables.tex").read_text()
    bare = re.sub(r"\\[{}&%$#_]", "", text.replace(r"\\\\", "").replace(r"\\", " END "))
    depths = [0]
    for sign in re.findall("[{}]", bare):
        depths.append(depths[-1] + (1 if sign == "{" else -1))
    assert (min(depths), depths[-1]) == (0, 0)
    assert bare.count("$") % 2 == 0
    for kind, names in (("begin", ["table*", "tabular"] * 2), ("end", ["tabular", "table*"] * 2)):
        assert re.findall(rf"\\{kind}{{(.*?)}}", text) == names
    rows = re.findall("(.*) END ", bare)
    assert len(rows) == sum(1 + len(table.rows) for table in tables)
    widths = [len(table.columns) for table in tables for _ in range(1 + len(table.rows))]
    assert [row.count("&") + 1 for row in rows] == widths
    assert re.findall(r"tabular}{(l[r]+)}", text) == ["l" + "r" * (len(table.columns) - 1) for table in tables]


def test_a_study_without_a_finished_run_has_empty_tables(tmp_path):
    tables = write_tables(StudyResults("none", ("rft", "nft"), (0,), "rft", ()), tmp_path)
    assert [table.rows for table in tables] == [(), ()]
    assert "nft: no finished run yet with a seed that rft has finished too." in (tmp_path / "tables.md").read_text()


def test_a_terminal_has_what_counts(tmp_path):
    whole = study({"rft": RFT, "nft": NFT[:2]}, seeds={"rft": [0, 1, 2], "nft": [0, 1]})
    variants, differences = write_tables(whole, tmp_path)
    assert variants.columns == ("variant", "seeds", "avg@4 [95%]", "processor time, s [95%]")
    assert variants.notes == ("nft: 2 of 3 seeds are done.",)
    assert [len(row) for row in (*variants.rows, *differences.rows)] == [4, 4, 4, 6]
    full = differences_table(whole)
    assert differences.rows[0] == tuple(full.rows[0][place] for place in (0, 1, 2, 3, 7, 10))
    assert differences.notes[0] == "nft: fewer than 3 seeds. These differences prove nothing."
    assert set(full.notes) > set(differences.notes)
    markdown = (tmp_path / "tables.md").read_text()
    assert all(note in markdown for table in (variants_table(whole), full) for note in table.notes)
