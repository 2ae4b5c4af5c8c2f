"""`--dry-run` and `evaluate` on a tiny real model, and Ctrl-C before a command runs."""

import fcntl
import io
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from forked_command import Fault, negaware
from negaware.cli import main
from negaware.commands.evaluate import _reserved, results_table
from negaware.evaluation.evaluate import EvaluationResult, GradedAnswer, ProblemResult
from negaware.files import aside_of
from tiny_run import tiny_config, write_tiny_config


def test_the_dry_run_shows_the_config_and_a_steps_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", str(write_tiny_config(tmp_path)), "--dry-run", "--run.steps", "7"]) == 0
    printed = capsys.readouterr().out
    assert "steps: 7" in printed
    assert "4 questions × 6 answers = 24 sequences, at most 6 tokens each: 144 answer tokens" in printed
    assert "2 optimizer steps of 2 questions and at most 72 answer tokens" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["negaware.safe_path:keep_path_safe", "argparse:ArgumentParser.parse_known_args"])
def test_ctrl_c_before_the_command_runs(place: str) -> None:
    """Nothing is lost and nothing is said: the signal itself ends the process, as it does most programs."""
    ended = negaware("train", "any.yaml", faults=[Fault("SIGINT", place)])
    assert (ended.code, ended.out, ended.err) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("name", ["/nonexistent/folder", "a/b/c"])
def test_the_dry_run_misses_a_model_folder_as_the_run_does(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    config, said = str(write_tiny_config(tmp_path)), []
    for options in ([], ["--dry-run"]):
        capsys.readouterr()
        assert main(["train", config, "--model", name, *options]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1]
    assert said[0].startswith(f"negaware: error: There is no model folder '{name}'; name a folder that exists")


def test_evaluate_prints_the_figures_and_keeps_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_config(tmp_path)
    model_config = tmp_path / "model" / "config.json"  # a task given by its path alone has a longer prompt
    model_config.write_text(json.dumps(json.loads(model_config.read_text()) | {"max_position_embeddings": 256}))
    output = tmp_path / "results.jsonl"
    options = ["--task", str(tmp_path / "test.jsonl"), "--samples", "4", "--max-new-tokens", "6"]
    assert main(["evaluate", str(tmp_path / "model"), *options, "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [len(result["answers"]) for result in results] == [4] * 4
    right = sum(answer["correct"] for result in results for answer in result["answers"])
    summary = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    assert summary["avg_at_4"]["value"] == pytest.approx(right / 16)
    assert summary["avg_at_4"]["low"] <= right / 16 <= summary["avg_at_4"]["high"]
    truncated = sum(answer["finish_reason"] == "length" for result in results for answer in result["answers"])
    assert summary["num_truncated"] == truncated
    for measure in ("avg@4", "pass@1", "pass@2", "pass@4", "maj@4"):
        assert measure in printed


def test_evaluate_keeps_the_answers_though_nobody_reads_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `negaware evaluate … | head -1`: sampling takes hours."""
    tiny_config(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    output = tmp_path / "results.jsonl"
    task = f"{{kind: dataset, path: {tmp_path / 'test.jsonl'}, prompt: '{{question}}'}}"
    options = ["--task", task, "--max-new-tokens", "2", "-o", str(output)]
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(open(writer, "wb", buffering=0), write_through=True) as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        with suppress(SystemExit):  # rich ends the process by itself
            assert main(["evaluate", str(tmp_path / "model"), *options]) == 0
        monkeypatch.undo()
    assert len(output.read_text().splitlines()) == 1


def test_evaluate_takes_a_task_of_ones_own_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a judge that looks at no gold answer."""
    tiny_config(tmp_path)
    (tmp_path / "judge_of_lengths.py").write_text("def is_right(answer, problem):\n    return len(answer) % 2 == 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    task = "{kind: dataset, path: test.jsonl, prompt: '{question}', verifier: 'judge_of_lengths:is_right'}"
    options = ["--samples", "6", "--max-new-tokens", "6", "-o", "results.jsonl"]
    assert main(["evaluate", "model", "--task", task, *options]) == 0
    results = [json.loads(line) for line in Path("results.jsonl").read_text().splitlines()]
    answers = [answer for result in results for answer in result["answers"] if answer["text"]]
    answers = [answer for answer in answers if answer["finish_reason"] == "stop"]  # what is cut off is wrong
    assert [answer["correct"] for answer in answers] == [len(answer["text"]) % 2 == 0 for answer in answers]
    assert {answer["correct"] for answer in answers} == {True, False}


JUDGES = """
def never(answer, problem):
    return 1 / 0

def once(answer, problem):
    return problem.answer == "1" or 1 / 0
"""


def test_evaluate_says_that_a_judge_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """On some answers beside the figures; on all there are no figures, and the same command goes on as it says."""
    tiny_config(tmp_path)
    (tmp_path / "judge_that_fails.py").write_text(JUDGES)
    (tmp_path / "two.jsonl").write_text('{"question": "1", "answer": "1"}\n{"question": "2", "answer": "2"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def command(judge: str) -> list[str]:
        task = f"{{kind: dataset, path: two.jsonl, prompt: '{{question}}', verifier: 'judge_that_fails:{judge}'}}"
        return ["evaluate", "model", "--task", task, "--max-new-tokens", "6"]

    assert main([*command("never"), "--samples", "2"]) == 2
    printed = capsys.readouterr()
    assert "answers can't be judged and count as wrong; the first: ZeroDivisionError: " in printed.err
    assert "avg@2" not in printed.out
    (output,) = tmp_path.glob("two-*.jsonl")
    assert len(output.read_text().splitlines()) == 2
    assert f"start again with -o {output.name}" in printed.err
    assert main([*command("once"), "-o", output.name]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 answers can't be judged and count as wrong; the first: ZeroDivisionError: " in out
    assert "avg@1" in out


def test_evaluate_refuses_many_greedy_samples(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--task", "arithmetic:test", "--samples", "4", "--temperature", "0"]
    assert main(["evaluate", str(tmp_path), *options]) == 2
    assert "all answers to a problem would be the same" in capsys.readouterr().err


def test_evaluate_gives_an_answer_the_room_that_its_prompt_leaves(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The model takes 64 tokens: two prompts leave 60 or more, one leaves 4, one none, and neither ends the command."""
    tiny_config(tmp_path)
    questions = ("1", "0+2", "0" * 58, "0" * 90)
    lines = [json.dumps({"question": question, "answer": "1"}) for question in questions]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    task = f"{{kind: dataset, path: {tmp_path / 'test.jsonl'}, prompt: '{{question}}'}}"
    output = tmp_path / "results.jsonl"
    options = ["--task", task, "--max-new-tokens", "6", "--samples", "2", "-o", str(output)]
    assert main(["evaluate", str(tmp_path / "model"), *options]) == 0
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [result["room"] for result in results] == [6, 6, 4, 0]
    assert [len(result["answers"]) for result in results] == [2] * 4
    assert max(answer["num_tokens"] for answer in results[2]["answers"]) <= 4
    assert [answer["correct"] for answer in results[3]["answers"]] == [False, False]
    printed = capsys.readouterr().out
    summary = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    assert (summary["num_short_of_room"], summary["num_without_room"]) == (2, 1)
    assert summary["avg_at_2"]["num_problems"] == 4
    assert "problems whose answers had less room" in printed
    assert "problems not asked: no room, wrong" in printed


def test_evaluate_names_its_results_by_run_and_overwrites_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny_config(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/test.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    command = ["evaluate", "a/model", "--task", "a/test.jsonl", "--max-new-tokens", "2", "--dtype", "float32"]
    model_config = tmp_path / "a/model/config.json"
    model_config.write_text(json.dumps(json.loads(model_config.read_text()) | {"max_position_embeddings": 256}))
    assert main(command) == 0
    results = tmp_path / "test-a-model-1.jsonl"
    before = results.stat().st_mtime_ns
    monkeypatch.setattr("negaware.finished_model.load_policy", None)  # it is refused before anything is loaded
    assert main(command) == 2
    expected = "test-a-model-1.jsonl exists already; give -o FILE to write elsewhere, or to replace it.\n"
    assert capsys.readouterr().err.endswith(expected)
    assert results.stat().st_mtime_ns == before
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*command, "-o", results.name]) == 0
    assert results.stat().st_mtime_ns > before


def test_two_evaluations_side_by_side_write_no_common_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The second is refused before it loads a model; what the first leaves unwritten blocks nobody."""
    tiny_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "model", "--task", "test.jsonl"]
    monkeypatch.setattr("negaware.finished_model.load_policy", None)
    said = "another evaluation is writing to {}; wait until it ends, or give -o FILE to write elsewhere."
    for options, output in ([], Path(f"test-{tmp_path.name}-model-1.jsonl")), (["-o", "own.jsonl"], Path("own.jsonl")):
        with _reserved(output, is_new=True):
            assert main([*command, *options]) == 2
            assert said.format(output) in capsys.readouterr().err
            with aside_of(output).open("ab") as written, pytest.raises(BlockingIOError):  # what `write_results` writes
                fcntl.flock(written, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not list(tmp_path.glob("*.partial"))
        with _reserved(output, is_new=True):
            pass
        output.write_text("")
        with pytest.raises(ValueError, match="exists already"), _reserved(output, is_new=True):
            pass
        assert not list(tmp_path.glob("*.partial"))


def test_one_sample_is_one_figure_with_a_word_of_caution() -> None:
    answer = GradedAnswer("1", True, "correct", "1", "stop", 1)
    results = tuple(ProblemResult(str(n), str(n), "1", 8, (answer,)) for n in range(10))
    console = Console(file=io.StringIO(), width=160)
    console.print(results_table(EvaluationResult("ten", 1, 8, results)))
    printed = " ".join(console.file.getvalue().split())
    assert printed.count("100.0% [") == 1
    assert "accuracy (avg@1, pass@1, maj@1)" in printed
    assert "only 10 problems, so one of them is 10 points: too few to tell small differences" in printed
