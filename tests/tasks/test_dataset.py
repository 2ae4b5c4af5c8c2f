import json
import sys
from pathlib import Path

import pytest

from negaware.tasks.dataset import Columns, dataset_problems, problems_from, read_jsonl
from negaware.tasks.options import DatasetOptions
from negaware.types import Problem


def options(path: Path, **rest: object) -> DatasetOptions:
    return DatasetOptions(path=str(path), **rest)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "problems.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_gives_problems_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "\ufeff"
        '{"q": " What is 2 + 2? ", "a": 4, "name": "first"}\n'
        "\n"
        '{"q": "Half of one,\u2028 as a decimal?", "a": 0.5, "name": 7}\r\n'
        '{"q": "Roots of x^2 = 1?", "a": ["1", "-1"], "name": "last"}',
    )
    columns = {"question_column": "q", "answer_column": "a"}
    assert dataset_problems(options(path, **columns)) == [
        Problem("problems/0", "What is 2 + 2?", "4"),
        Problem("problems/1", "Half of one,\u2028 as a decimal?", "0.5"),
        Problem("problems/2", "Roots of x^2 = 1?", "1, -1"),
    ]
    named = dataset_problems(options(path, id_column="name", num_problems=2, **columns))
    assert [problem.id for problem in named] == ["first", "7"]


def test_a_suffix_in_capitals_is_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, '{"question": "1 + 1?", "answer": "2"}\n').rename(tmp_path / "P.JSONL")
    assert dataset_problems(options(path)) == [Problem("P/0", "1 + 1?", "2")]


GOOD = '{"question": "1 + 1?", "answer": "2", "id": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "{'question': 1}", "line 2: not JSON"),
        (GOOD + "\n" + GOOD[:20], "line 3: not JSON"),
        (GOOD.encode() + b'{"question": "\xff", "answer": "1"}', "line 2: not UTF-8; save the file as UTF-8"),
        (GOOD + "[" * 100_000, "line 2: not JSON"),
        (GOOD + r'{"question": "1 \ud800", "answer": "1"}', r"line 2: holds half of a character ('\ud800')"),
        (GOOD + r'{"question": "1", "answer": "\udfff"}', r"line 2: holds half of a character ('\udfff')"),
        (GOOD + '["1 + 1?", "2"]', "line 2: expected a JSON object, got list"),
        (GOOD + '{"Question": "1?", "answer": "1"}', "line 2: no column 'question', it has 'Question', 'answer'"),
        (GOOD + '{"question": "1?"}', "line 2: no column 'answer'"),
        (GOOD + '{"question": 5, "answer": "1"}', "line 2: 'question' must be a non-empty text, got 5"),
        (GOOD + '{"question": "  ", "answer": "1"}', "line 2: 'question' must be a non-empty text"),
        (GOOD + '{"question": "1?", "answer": ""}', "line 2: 'answer' must be a non-empty text or a number"),
        (GOOD + '{"question": "1?", "answer": null}', "line 2: 'answer' must be a non-empty text or a number"),
        (GOOD + '{"question": "1?", "answer": []}', "line 2: 'answer' must be a non-empty text or a number"),
        (GOOD + '{"question": "1?", "answer": true}', "line 2: 'answer' must be a non-empty text or a number"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_bad_jsonl_is_refused_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=r".") as refusal:
        dataset_problems(options(path))
    assert str(refusal.value).startswith(str(path))
    assert message in str(refusal.value)


def test_a_repeated_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + GOOD)
    with pytest.raises(ValueError, match=r"line 2: id 'a' was already given \(.*line 1\)"):
        dataset_problems(options(path, id_column="id"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.parquet"):
        with pytest.raises(ValueError, match="is not a file"):
            dataset_problems(options(tmp_path / name))
    with pytest.raises(ValueError, match="is not a file"):
        list(read_jsonl(tmp_path))


def test_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        problems_from([], "nothing", Columns("question", "answer"))


def test_parquet_and_jsonl_give_the_same_problems(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"question": f"{n} + 1?", "answer": str(n + 1)} for n in range(3)]
    path = tmp_path / "problems.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    jsonl = written(tmp_path, "\n".join(map(json.dumps, rows)))
    assert dataset_problems(options(path)) == dataset_problems(options(jsonl))
    with pytest.raises(ValueError, match=r"problems\.parquet, row 0: no column 'gold'"):
        dataset_problems(options(path, answer_column="gold"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_path_is_no_pattern(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a file's name nor that of the folder where we are."""
    datasets = pytest.importorskip("datasets")
    here = tmp_path / "here[1]"
    for folder in (here, tmp_path / "here1"):
        for name in ("a[1]", "a1", "b", "*"):
            set_of_one = datasets.Dataset.from_list([{"question": "?", "answer": f"{name} in {folder.name}"}])
            folder.mkdir(exist_ok=True)
            getattr(set_of_one, {"jsonl": "to_json", "parquet": "to_parquet"}[suffix])(folder / f"{name}.{suffix}")
    monkeypatch.chdir(here)
    for name in ("a[1]", "a1", "b", "*"):
        (problem,) = dataset_problems(options(Path(f"{name}.{suffix}")))
        assert problem.answer == f"{name} in here[1]"
    with pytest.raises(ValueError, match=r"is not a file"):
        dataset_problems(options(Path(f"?.{suffix}")))


def test_a_folder_that_would_be_a_pattern_is_refused(tmp_path: Path) -> None:
    for name in ("set[1]", "set1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(json.dumps({"question": "?", "answer": name}))
    with pytest.raises(ValueError, match=r"set\[1\] would be taken for a pattern, and others read"):
        dataset_problems(options(tmp_path / "set[1]"))


def test_a_broken_parquet_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    path = tmp_path / "problems.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(ValueError, match=r"problems\.parquet could not be loaded .*; write it again"):
        dataset_problems(options(path))


def test_a_data_set_of_several_files_is_read_like_the_hub(tmp_path: Path) -> None:
    """The hub's reader, on a folder with the hub's layout: a split is chosen by name."""
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        row = {"question": f"Which {split}?", "answer": split}
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    assert [problem.answer for problem in dataset_problems(options(tmp_path, split="test"))] == ["test"]
    with pytest.raises(ValueError, match="could not be loaded"):
        dataset_problems(options(tmp_path, split="validation"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    for path in (Path("someone/their-problems"), tmp_path / "a.parquet"):
        with pytest.raises(ValueError, match=r"pip install 'negaware\[data\]'"):
            dataset_problems(options(path))
