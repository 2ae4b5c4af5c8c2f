import json
import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from negaware.verifiers import grade
from negaware.verifiers.grade import grade_command, grade_file


def _write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def _read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_verdicts_come_in_the_order_of_the_lines(tmp_path: Path) -> None:
    rows: list[object] = [
        {"prediction": r"So \boxed{\frac{2}{\sqrt{2}}}.", "gold": r"The answer is $\boxed{\sqrt{2}}$."},
        {"prediction": "The answer is 5.", "gold": "4"},
        {"prediction": "I don't know.", "gold": "4"},
        {"prediction": 0.5, "gold": "1/2"},
        {"prediction": "#### 1,234", "gold": 1234},
        {"prediction": "72", "gold": "48 + 24 = 72\n#### 72"},
    ]
    source, target = _write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    counts = grade_file(source, target)
    assert counts == {"correct": 4, "wrong": 1, "no_answer": 1}
    assert _read(target) == [
        {"correct": True, "reason": "correct", "extracted": r"\frac{2}{\sqrt{2}}"},
        {"correct": False, "reason": "wrong", "extracted": "5"},
        {"correct": False, "reason": "no_answer", "extracted": None},
        {"correct": True, "reason": "correct", "extracted": "0.5"},
        {"correct": True, "reason": "correct", "extracted": "1,234"},
        {"correct": True, "reason": "correct", "extracted": "72"},
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_without_an_output_verdicts_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grade_file(_write(tmp_path / "in.jsonl", [{"prediction": "4", "gold": "4"}]))
    assert json.loads(capsys.readouterr().out)["reason"] == "correct"


def test_the_extraction_can_be_narrowed(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prediction": "it is 4", "gold": "4"}])
    assert grade_file(source, tmp_path / "out.jsonl", ["boxed"]) == {"no_answer": 1}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "line 2: not JSON"),
        ('{"prediction": ' + "9" * 5000 + ', "gold": "4"}', "line 2: not JSON"),
        ('{"prediction": "4"}', "line 2: no gold"),
        ("[1, 2]", "line 2: expected a JSON object, got list"),
        ('{"prediction": null, "gold": "4"}', "line 2: prediction is null"),
        ('{"prediction": "4", "gold": true}', "line 2: gold is true"),
    ],
)
def test_a_malformed_line_is_named_before_anything_is_written(tmp_path: Path, line: str, complaint: str) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prediction": "4", "gold": "4"}, line])
    target = _write(tmp_path / "out.jsonl", ["an earlier result"])
    with pytest.raises(ValueError, match=complaint):
        grade_file(source, target)
    assert target.read_text() == "an earlier result\n"


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.jsonl: No such file"):
        grade_file(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="holds no line"):
        grade_file(_write(tmp_path / "empty.jsonl", []))


def test_a_pipe_is_read_as_a_file_is(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = '{"prediction": "4", "gold": "4"}\n' * 5
    with ThreadPoolExecutor(1) as threads:
        threads.submit(pipe.write_text, lines + "[]")
        with pytest.raises(ValueError, match="line 6: expected a JSON object"):
            grade_file(pipe, tmp_path / "out.jsonl")
        threads.submit(pipe.write_text, lines)
        assert grade_file(pipe, tmp_path / "out.jsonl") == {"correct": 5}


def test_a_long_file_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 MB of it, 80 kB at a time."""
    monkeypatch.setattr(grade, "_CHUNK", 16)
    line = json.dumps({"prediction": "x" * 5000 + " the answer is 4", "gold": "4"}) + "\n"
    source = tmp_path / "long.jsonl"
    source.write_text(line * 4000)
    tracemalloc.start()
    try:
        assert grade_file(source, tmp_path / "out.jsonl", ["boxed"]) == {"no_answer": 4000}
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


def test_a_line_that_is_no_utf_8_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"prediction": "4", "gold": "4"}\r\n\r\n{"prediction": "\xff", "gold": "4"}\n')
    with pytest.raises(ValueError, match="line 3: not UTF-8"):
        grade_file(source, tmp_path / "out.jsonl")


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prediction": "4", "gold": "4"}])
    with pytest.raises(ValueError, match="No such file or directory"):
        grade_file(source, tmp_path / "absent" / "out.jsonl")


def test_the_command_sums_up_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _write(tmp_path / "in.jsonl", [{"prediction": "4", "gold": "4"}, {"prediction": "it is 4", "gold": "5"}])
    grade_command(source, tmp_path / "out.jsonl", "boxed,bare")
    assert capsys.readouterr() == ("", "2 graded: 1 correct, 1 no answer (50.0% correct)\n")
    with pytest.raises(ValueError, match="'boxes'"):
        grade_command(source, None, "boxes")
