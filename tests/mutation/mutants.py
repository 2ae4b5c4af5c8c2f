"""Mutation testing: one small fault at a time in the modules whose numbers matter. A suite that proves them notices.

    .venv/bin/python tests/mutation/mutants.py --sample 300 --seed 0 [FILE …]

A mutant runs the tests that run its line, the cheapest first, until one fails. What can be changed, and what it came
to, is in docs/testing.md.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from faults import Mutant, mutants_of, mutated
from forks import OPTIONS, ROOT, SOURCE, Collected, Outcome, Times, first_pass, in_a_fork, in_order, run_imported

VERIFIERS = (
    *("tests/verifiers/test_extract_answer.py", "tests/verifiers/test_answer_pairs.py"),
    *("tests/verifiers/test_adversary.py", "tests/verifiers/test_adversary_pairs.py"),
    *("tests/verifiers/test_linear_time.py", "tests/verifiers/test_extract_details.py"),
    *("tests/verifiers/test_extract_limits.py", "tests/verifiers/test_adversary_values.py"),
    *("tests/verifiers/test_adversary_claims.py", "tests/verifiers/test_extract_rules.py"),
    "tests/verifiers/test_equivalence_rules.py",
)
SEEN_BY = {  # files → the tests that are to notice
    "objectives/*.py": ("tests/objectives", "tests/training/test_step.py", "tests/training/test_given_loss.py"),
    "training/*.py": ("tests/training",),
    "rollout/collect.py": ("tests/rollout/test_collect.py", "tests/rollout/test_collect_numbers.py"),
    "evaluation/metrics.py": ("tests/evaluation/test_metrics.py", "tests/test_estimates.py"),
    "estimates.py": ("tests/evaluation/test_metrics.py", "tests/test_estimates.py"),
    "verifiers/extract.py": VERIFIERS,
    "verifiers/equivalence.py": VERIFIERS,
    "verifiers/hedges.py": VERIFIERS,
}
ELSEWHERE = {  # processes of their own and whole runs, for what survives the tests above (with --again)
    "objectives/credit.py": ("tests/objectives/test_import.py",),
    "objectives/nft.py": ("tests/objectives/test_import.py",),
    "objectives/contract.py": ("tests/objectives/test_import.py", "tests/test_user_loss.py"),
    "training/checkpoint.py": ("tests/test_resume.py", "tests/test_ranks.py"),
    "training/step.py": ("tests/test_ranks.py",),
    "training/optimizer.py": ("tests/test_ranks.py",),
    "training/options.py": ("tests/test_config.py",),
    "rollout/collect.py": ("tests/test_train.py",),
}


def sample(files: Sequence[str], number: int, seed: int) -> list[Mutant]:
    """`number` mutants, of each file in proportion to how many it has; all of them if `number` is 0."""
    mutants = {file: mutants_of(file, (SOURCE / file).read_text()) for file in files}
    total = sum(map(len, mutants.values()))
    if not number or number >= total:
        return [mutant for of_file in mutants.values() for mutant in of_file]
    exact = {file: number * len(of_file) / total for file, of_file in mutants.items()}
    sizes = {file: int(size) for file, size in exact.items()}
    for file in sorted(exact, key=lambda file: sizes[file] - exact[file])[: number - sum(sizes.values())]:
        sizes[file] += 1
    return [
        mutant
        for file, of_file in mutants.items()
        for mutant in random.Random(f"{seed}:{file}").sample(of_file, sizes[file])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="files of src/negaware, such as training/step.py; by default all")
    parser.add_argument("--sample", type=int, default=300, help="mutants drawn, stratified by file; 0 takes all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests that a mutant has to survive")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mutants.jsonl"),
        help="a line for each mutant; one that stands here already, of the same source, isn't run again",
    )
    parser.add_argument(
        "--again", action="store_true", help="runs what survived once more, with this budget, and then on whole runs"
    )
    parser.add_argument("--first-pass", type=Path, help="keeps what the first pass found, and takes it from there")
    options = parser.parse_args()
    os.chdir(ROOT)
    seen_by = {
        str(path.relative_to(SOURCE)): tests
        for pattern, tests in SEEN_BY.items()
        for path in sorted(SOURCE.glob(pattern))
        if path.name != "__init__.py"
    }
    chosen = sample(options.files or list(seen_by), options.sample, options.seed)
    tests = list(dict.fromkeys(test for mutant in chosen for test in seen_by[mutant.file]))
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        found = options.first_pass or folder
        found.mkdir(parents=True, exist_ok=True)
        if not (found / "first.json").exists():
            os.waitpid(in_a_fork(lambda: first_pass(tests, found), found / "log"), 0)
        first = json.loads((found / "first.json").read_text())
        for module in first["modules"]:
            try:
                importlib.import_module(module)
            except Exception:  # a module of modules, or one that a test made
                continue
        if first["failed"]:
            print(f"left out, for they fail without mutations: {', '.join(first['failed'])}")
        run_all(chosen, tests, first, folder, options)


def run_all(
    chosen: list[Mutant], tests: Sequence[str], first: dict[str, Any], folder: Path, options: argparse.Namespace
) -> None:
    """Runs the mutants, prints what became of each, and the score. Before them the unchanged trees must survive."""
    seconds: Times = first["seconds"]
    sources = {file: (SOURCE / file).read_text() for file in {mutant.file for mutant in chosen}}
    covered = {file: {int(line): set(tests) for line, tests in first["covered"][file].items()} for file in sources}

    def tests_of(mutant: Mutant) -> list[str]:
        lines = covered[mutant.file]
        return in_order(lines.get(mutant.line) or lines[0], seconds, options.budget)

    def runs_once(mutant: Mutant) -> bool:
        """Whether its line runs only while the module is imported: what is changed in memory then comes too late."""
        return not mutant.function or covered[mutant.file].get(mutant.line) == set()

    def in_memory(run_one: Callable[..., Outcome]) -> None:
        for mutant in chosen:
            if not runs_once(mutant) and (mutant not in done or mutant in again):
                began = time.monotonic()
                source = mutated(mutant, sources[mutant.file])
                outcome = run_one(mutant.file, mutant.function, source, tests_of(mutant))
                if outcome.result != "cannot":
                    write(mutant, outcome, time.monotonic() - began)

    def write(mutant: Mutant, outcome: Outcome, took: float) -> None:
        line = {**outcome._asdict(), **mutant.__dict__, "source": digest(sources[mutant.file]), "seconds": took}
        with options.out.open("a") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(f"{outcome.result:8} {mutant.file}:{mutant.line} {mutant.what}  [{outcome.by}, {took:.1f} s]", flush=True)

    def imported(mutant: Mutant, tests: Sequence[str]) -> None:
        began = time.monotonic()
        outcome = run_imported({mutant.file: mutated(mutant, sources[mutant.file])}, tests, seconds, folder)
        write(mutant, outcome, time.monotonic() - began)

    done = read_results(options.out, chosen, sources)
    again = {mutant for mutant, result in done.items() if options.again and result == "survived"}
    unchanged = {file: ast.unparse(ast.parse(source)) for file, source in sources.items()}
    some = set().union(*(lines[0] for lines in covered.values()))
    outcome = run_imported(unchanged, in_order(some, seconds, 20), seconds, folder)
    if outcome.result != "survived":
        sys.exit(f"Unchanged sources are {outcome}:\n{(folder / 'log').read_text()[-3000:]}")
    session = Collected(in_memory, seconds, folder)
    collect = [*OPTIONS, f"--basetemp={folder / 'tests'}", *tests]
    if any(not runs_once(mutant) and (mutant not in done or mutant in again) for mutant in chosen):
        os.waitpid(in_a_fork(lambda: pytest.main(collect, [session]), None), 0)
    done |= read_results(options.out, chosen, sources)
    for mutant in chosen:
        if mutant not in done or (mutant in again and runs_once(mutant)):
            imported(mutant, tests_of(mutant))
    for mutant, result in read_results(options.out, chosen, sources).items():
        if options.again and result == "survived" and mutant.file in ELSEWHERE:
            imported(mutant, ELSEWHERE[mutant.file])
    results = read_results(options.out, chosen, sources)
    if len(results) < len(chosen):
        print(f"{len(chosen) - len(results)} of {len(chosen)} couldn't run, and count as nothing")
    print_score(results)


def digest(source: str) -> str:
    """Which source a result is of."""
    return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()


def read_results(path: Path, chosen: Sequence[Mutant], sources: dict[str, str]) -> dict[Mutant, str]:
    """What became of the mutants that could run, of the sources as they are; the last word counts."""
    if not path.exists():
        return {}
    digests = {file: digest(source) for file, source in sources.items()}
    found = {}
    for line in map(json.loads, path.read_text().splitlines()):
        if digests.get(line["file"]) == line["source"] and line["result"] != "cannot":
            found[line["file"], line["node"], line["variant"]] = line["result"]
    places = {mutant: (mutant.file, mutant.node, mutant.variant) for mutant in chosen}
    return {mutant: found[place] for mutant, place in places.items() if place in found}


def print_score(results: dict[Mutant, str]) -> None:
    """A line for each file, and one for all, with Wilson's 95 % interval."""
    from negaware.estimates import wilson_interval

    files = sorted({mutant.file for mutant in results})
    for name, members in [*((file, {file}) for file in files), ("all", set(files))]:
        of_file = [result for mutant, result in results.items() if mutant.file in members]
        num_died = sum(result != "survived" for result in of_file)
        low, high = wilson_interval(num_died / len(of_file), len(of_file), NormalDist().inv_cdf(0.975))
        score = f"{100 * num_died / len(of_file):5.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        print(f"{name:28} {num_died:4} of {len(of_file):4} died, {of_file.count('timeout'):3} by timeout  {score}")


if __name__ == "__main__":
    main()
