"""The mutation tool: which faults it makes, and that a fork runs the fault and its parent doesn't."""

import ast
import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from faults import mutants_of, mutated
from forks import SOURCE, in_order, swap_code, watched
from mutants import digest, print_score, read_results, sample

from negaware.objectives.ops import capped_exp

SMALL = '''
"""A docstring with 3 words."""
LIMIT: int = 2

def bounded(x: "int | None", most=1.5):
    """Another, with 4."""
    if x is None and most > LIMIT:
        raise ValueError("5")
    return [min(y, most) for y in x if y][:-1]
'''


def test_each_fault_of_a_small_module() -> None:
    unchanged = ast.unparse(ast.parse(SMALL)).splitlines()
    found = []
    for mutant in mutants_of("small.py", SMALL):
        lines = mutated(mutant, SMALL).splitlines()
        assert len(lines) == len(unchanged)
        ((before, after),) = [(old, new) for old, new in zip(unchanged, lines, strict=True) if old != new]
        assert (mutant.function == "bounded") == before.startswith("    ")
        found.append(after.strip())
    assert sorted(found) == sorted(
        [
            *("LIMIT: int = 3", "LIMIT: int = 1", "def bounded(x: 'int | None', most=3.0):"),
            *("if not (x is None and most > LIMIT):", "if x is None or most > LIMIT:", "if most > LIMIT:"),
            *("if x is None:", "if x is not None and most > LIMIT:"),
            *("if x is None and most >= LIMIT:", "if x is None and most <= LIMIT:", "pass", "return None"),
            *("return [min(y, most) for y in x if y][:]", "return [min(y, most) for y in x if y][:1]"),
            *("return [min(y, most) for y in x if y][:-2]", "return [min(y, most) for y in x if y][:-0]"),
            *("return [max(y, most) for y in x if y][:-1]", "return [min(y, most) for y in x][:-1]"),
        ]
    )


def test_a_sample_is_in_proportion_and_the_same_for_a_seed() -> None:
    files = ["objectives/nft.py", "training/pack.py", "training/step.py"]
    sizes = {file: len(mutants_of(file, (SOURCE / file).read_text())) for file in files}
    drawn = sample(files, 50, seed=3)
    assert drawn == sample(files, 50, seed=3) != sample(files, 50, seed=4)
    assert len(set(drawn)) == 50
    for file, number in Counter(mutant.file for mutant in drawn).items():
        assert number == pytest.approx(50 * sizes[file] / sum(sizes.values()), abs=1)


def test_a_fork_runs_the_fault_and_this_process_does_not(tmp_path: Path) -> None:
    source = (SOURCE / "objectives/ops.py").read_text()
    (fault,) = [each for each in mutants_of("objectives/ops.py", source) if each.what.endswith("→  log_ratios")]
    beyond = torch.tensor([20.0])  # what the cap on the log-ratio is for

    def run(pipe: int) -> int:
        swap_code("objectives/ops.py", "capped_exp", mutated(fault, source))
        return int(capped_exp(beyond).item() > 1e8)

    assert watched(run, {}, tmp_path / "log").result == "killed"
    assert capped_exp(beyond).item() == pytest.approx(math.exp(10))
    assert watched(lambda pipe: 0, {}, tmp_path / "log").result == "survived"
    assert watched(lambda pipe: 1 // 0, {}, tmp_path / "log").result == "cannot"


def test_what_could_not_run_counts_as_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither as a death nor in the place of what a run before it said; nor does what was said of another source."""
    killed, survived, impossible, other = mutants = mutants_of("small.py", SMALL)[:4]
    said = [(killed, "survived"), (killed, "killed"), (survived, "survived"), (survived, "cannot")]
    lines = [{**each.__dict__, "result": result, "source": digest(SMALL)} for each, result in said]
    lines += [{**impossible.__dict__, "result": "cannot", "source": digest(SMALL)}]
    lines += [{**other.__dict__, "result": "killed", "source": digest(SMALL + "pass")}]
    (tmp_path / "out").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = read_results(tmp_path / "out", mutants, {"small.py": SMALL})
    assert results == {killed: "killed", survived: "survived"}
    print_score(results)
    assert [line.split()[:5] for line in capsys.readouterr().out.splitlines()] == [
        ["small.py", "1", "of", "2", "died,"],
        ["all", "1", "of", "2", "died,"],
    ]


def test_the_cheapest_tests_come_first_up_to_a_budget() -> None:
    seconds = {"a": 5.0, "b": 0.1, "c": 2.0, "d": 0.1}
    assert in_order({"a", "b", "c", "d"}, seconds, 3) == ["b", "d", "c"]
    assert in_order({"a"}, seconds, 3) == ["a"]
