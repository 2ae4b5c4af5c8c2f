import json
from pathlib import Path
from typing import Any, get_args

import pytest

from negaware.tasks import benchmarks
from negaware.tasks.benchmarks import BENCHMARKS, benchmark_problems, file_name, hub_problems
from negaware.tasks.options import BenchmarkName, BenchmarkOptions
from negaware.types import Problem

# One row as the hub gives it, and the id, question and gold that it must become.
HUB_ROWS: dict[str, tuple[dict[str, Any], tuple[str, str, str]]] = {
    "gsm8k_train": (
        {"question": "How much?", "answer": "It is 7 * 200 = <<7*200=1400>>1400.\n#### 1,400"},
        ("gsm8k_train/0", "How much?", "1400"),
    ),
    "gsm8k_test": (
        {"question": "How much?", "answer": "Less.\n#### -5"},
        ("gsm8k_test/0", "How much?", "-5"),
    ),
    "math_train": (
        {"problem": "Half?", "solution": r"First \boxed{1}, then $\boxed{\frac{1}{2}}$.", "level": "Level 1"},
        ("math_train/0", "Half?", r"\frac{1}{2}"),
    ),
    "dapo_math_17k": (
        {"prompt": "Find $a$.", "solution": "34", "data_source": "math_dapo"},
        ("dapo_math_17k/0", "Find $a$.", "34"),
    ),
    "aime24": ({"id": 60, "problem": "Find it.", "answer": "204"}, ("60", "Find it.", "204")),
    "aime25": ({"id": "0", "problem": "Find it.", "answer": "70"}, ("0", "Find it.", "70")),
    "amc23": ({"id": 3, "question": "Find it.", "answer": 27.0}, ("3", "Find it.", "27.0")),
    "math500": (
        {"problem": "Which?", "answer": "p - q", "unique_id": "test/algebra/1.json"},
        ("test/algebra/1.json", "Which?", "p - q"),
    ),
    "olympiadbench": (
        {"id": 1606, "question": "How many?", "final_answer": ["$2$", "$3$"]},
        ("1606", "How many?", "$2$, $3$"),
    ),
    "minerva_math": ({"question": "How far?", "answer": "4e33"}, ("minerva_math/0", "How far?", "4e33")),
}


def test_every_named_set_has_an_entry_and_a_row_here() -> None:
    names = {file_name(BenchmarkOptions(name=name)) for name in get_args(BenchmarkName)}
    assert names | {"gsm8k_test"} == set(BENCHMARKS) == set(HUB_ROWS)


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_row_of_the_hub_becomes_a_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, expected = HUB_ROWS[name]
    asked = []

    def read_rows(*location: str | None) -> list[tuple[str, dict[str, Any]]]:
        asked.append(location)
        return [("row 0", row)]

    monkeypatch.setattr(benchmarks, "read_rows", read_rows)
    benchmark = BENCHMARKS[name]
    assert hub_problems(benchmark, name) == [Problem(*expected)]
    assert asked == [(benchmark.hub, benchmark.subset, benchmark.split)]


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_local_file_stands_in_for_the_hub(name: str, tmp_path: Path) -> None:
    rows = [{"id": f"{name}/{n}", "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(3)]
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = "test" if name == "gsm8k_test" else None
    options = BenchmarkOptions(name=name.removesuffix("_test").removesuffix("_train"), split=split)
    assert benchmark_problems(options, tmp_path) == [Problem(**row) for row in rows]
    assert len(benchmark_problems(options.model_copy(update={"num_problems": 2}), tmp_path)) == 2


def test_a_file_that_the_folder_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"needs the file gsm8k_train\.jsonl, which {tmp_path} lacks"):
        benchmark_problems(BenchmarkOptions(name="gsm8k"), tmp_path)


def test_a_row_without_a_gold_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"problem": "Half?", "solution": "No box."}
    monkeypatch.setattr(benchmarks, "read_rows", lambda *_: [("row 0", row)])
    with pytest.raises(ValueError, match="row 0: 'solution' must be a non-empty text"):
        hub_problems(BENCHMARKS["math_train"], "math_train")
