"""A command never writes over a file that it reads, nor the report over a file that is no report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from negaware.cli import main
from negaware.runs.folder import RunFolder
from tiny_run import contents

MODEL, DATA = "model/model.safetensors", "data/gsm8k_test.jsonl"
READ = "which this command reads"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (MODEL, DATA, "own.jsonl", "my_rules.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"question": "1", "answer": "1", "prediction": "1", "gold": "1"}\n')
    (tmp_path / "link").symlink_to("own.jsonl")
    os.link(tmp_path / "own.jsonl", tmp_path / "twin")
    RunFolder.create(tmp_path / "run", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("output", ["own.jsonl", "link", "twin", "data/../own.jsonl"])
@pytest.mark.parametrize(
    ("command", "lost"),
    [
        (["grade", "own.jsonl"], f"own.jsonl, {READ}"),
        (["evaluate", "model", "--task", "own.jsonl"], f"own.jsonl, {READ}"),
        (["report", "run"], "{output}, which is no page that `negaware report` wrote"),
    ],
    ids=["grade", "evaluate", "report"],
)
def test_a_file_of_the_users_is_not_replaced(
    folder: Path, capsys: pytest.CaptureFixture, command: list[str], lost: str, output: str
) -> None:
    assert_kept(folder, capsys, [*command, "-o", output], lost.format(output=output))


@pytest.mark.parametrize("output", [MODEL, DATA, "my_rules.py"])
def test_an_evaluation_leaves_its_model_its_data_and_its_judge(
    folder: Path, capsys: pytest.CaptureFixture, output: str
) -> None:
    task = "{kind: benchmark, name: gsm8k, split: test, verifier: 'my_rules:is_right'}"
    command = ["evaluate", "model", "--task", task, "--data-dir", "data", "-o", output]
    assert_kept(folder, capsys, command, f"{output}, {READ}")


def assert_kept(folder: Path, capsys: pytest.CaptureFixture, command: list[str], lost: str) -> None:
    before = contents(folder)
    assert main(command) == 2
    said = f"negaware: error: -o {command[-1]} would replace {lost}; give -o another file.\n"
    assert capsys.readouterr() == ("", said)
    assert contents(folder) == before


def test_a_report_replaces_a_report(folder: Path) -> None:
    page = folder / "page.html"
    assert main(["report", "run", "-o", str(page)]) == 0
    first = page.read_text()
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1}\n')
    assert main(["report", "run", "-o", str(page)]) == 0
    assert page.read_text() != first
    page.write_text("<!DOCTYPE html>\n<title>my notes</title>\n")
    assert main(["report", "run", "-o", str(page)]) == 2
