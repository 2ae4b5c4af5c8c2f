"""The command line: what is wrong ends in one sentence on standard error and exit code 2, and nothing is lost."""

# ruff: noqa: E501
# The tables hold whole sentences.

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forked_command import Ended, Fault, negaware
from negaware.cli import main
from negaware.runs.folder import RunFolder
from negaware.tasks.task import Task
from tiny_run import contents, write_tiny_config

HEAVY = ("torch", "transformers", "pydantic", "rich", "sympy", "plotly", "numpy", "yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its data, and a finished run of two steps."""
    folder = tmp_path_factory.mktemp("tiny")
    assert negaware("train", write_tiny_config(folder, run__steps=2)).code == 0
    return folder


def assert_refused(ended: Ended, sentence: str) -> None:
    assert (ended.code, ended.err) == (2, f"negaware: error: {sentence}\n")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["--version"], ["compare", "--help"], ["plan", "--help"]]
)
def test_help_is_instant(arguments: list[str]) -> None:
    """It imports nothing heavy, in a fresh process."""
    code = f"""
import sys
from negaware.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    print(end.code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "0 []\n"
    if "train" in arguments:
        assert "docs/config.md" in done.stdout
        assert "--dry-run" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "argument COMMAND: invalid choice: 'trian'"),
        (["train"], "the following arguments are required: CONFIG.yaml"),
        (["train", "a.yaml", "--resume", "--force"], "argument --force: not allowed with argument --resume"),
        (["grade", "a.jsonl", "--foo"], "unrecognized arguments: --foo"),
        (["evaluate", "model"], "the following arguments are required: --task"),
        (["evaluate", "m", "--task", "a", "--task=b"], "argument --task: given twice, as a and as b; give it once"),
        (["grade", "a", "-o", "b", "--output", "c"], "argument -o/--output: given twice, as b and as c; give it once"),
        (["train", "a.yaml", "--resume", "--resume"], "argument --resume: given twice; give it once"),
        (["plan", "a", "--gpus", "8", "--gpus", "9"], "argument --gpus: given twice, as 8 and as 9; give it once"),
        (
            ["compare", "a", "--seeds", "0", "--seeds", "1"],
            "argument --seeds: given twice, as 0 and as 1; give it once",
        ),
        (
            ["evaluate", "model", "--task", "gsm8k", "--samples", "0"],
            "argument --samples: '0' is not a whole number above 0",
        ),
    ],
)
def test_usage(arguments: list[str], complaint: str) -> None:
    ended = negaware(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("usage: negaware")
    assert complaint in ended.err.splitlines()[-1]


def without(names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for file in model.glob(names):
            file.unlink()

    return change


def garbage_config(model: Path) -> None:
    (model / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("*token*"), "The model '{model}' has no tokenizer that can be loaded ("),
        (
            without("chat_template.jinja"),
            "The tokenizer of '{model}' has no chat template; add one as chat_template.jinja to its folder, ",
        ),
        (without("model.safetensors"), "The model '{model}' can't be loaded: "),
        (garbage_config, "The model '{model}' has no tokenizer that can be loaded (It looks like the config file at"),
        (
            shutil.rmtree,
            "There is no model folder '{model}'; name a folder that exists, a hub model, or 'smollm2-135m-instruct'.",
        ),
    ],
    ids=["no tokenizer", "no chat template", "no weights", "garbage config", "no folder"],
)
def test_bad_model(folder: Path, tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    """Even --force deletes the run that is there only once the new one's model and data are loaded."""
    model, before = tmp_path / "model", contents(folder / "run")
    shutil.copytree(folder / "model", model)
    change(model)
    ended = negaware("train", folder / "tiny.yaml", "--force", "--model", model)
    assert ended.code == 2
    assert ended.err.startswith("negaware: error: " + sentence.format(model=model))
    assert ended.err.count("\n") == 1
    assert contents(folder / "run") == before


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "{path} is empty; expected one JSON object a line"),
        ('{"question": "0", "answer": "1"}\n\n{"question": ', "{path}, line 3: not JSON (Expecting value: line 1 column 14 (char 13)); each line must be one JSON object"),
        ('["question", "0"]\n', "{path}, line 1: expected a JSON object, got list; each line must be one JSON object"),
        ('{"question": "0", "answr": "1"}\n', "{path}, line 1: no column 'answer', it has 'question', 'answr'; did you mean 'answr'?"),
        ('{"question": "0", "answer": null}\n', "{path}, line 1: 'answer' must be a non-empty text or a number, got None"),
        ('{"question": "0", "answer": "1"}\n{"question": "1", "answer": "\\\\frac{1}{"}\n', "{path}: 1 of 2 gold answers can't be graded, such as that of problems/1 (the gold answer '\\\\frac{{1}}{{' was read as '1' and is not equal to itself); correct or leave out what `negaware audit` lists."),
        (json.dumps({"question": "0 " * 40, "answer": "1"}), "Every prompt of task 'problems' has 64 tokens or more, all that the model takes, the shortest 81; take shorter questions, or a model that takes more."),
        (None, "{path} is not a file; give the path of a .jsonl or .parquet file"),
    ],
    ids=["empty", "malformed line", "no object", "no column", "no gold", "gold without value", "long prompt", "no file"],
)  # fmt: skip
def test_bad_data(folder: Path, tmp_path: Path, content: str | None, sentence: str) -> None:
    path, run = tmp_path / "problems.jsonl", tmp_path / "run"
    if content is not None:
        path.write_text(content)
    ended = negaware("train", folder / "tiny.yaml", "--task.path", path, "--run.folder", run)
    assert_refused(ended, sentence.format(path=path))
    assert not run.exists()  # so the same command works once the data is mended


def test_a_config_is_refused_before_anything_is_loaded(folder: Path) -> None:
    loading = [Fault("SIGKILL", "negaware.tasks.load:load_task"), Fault("SIGKILL", "negaware.loop.train:train")]
    ended = negaware("train", folder / "tiny.yaml", "--rollout.completions", 1, faults=loading)
    assert_refused(
        ended,
        "rollout.completions is 1, but the objective nft compares a question's answers; set it to 2 or more, or take objective rft.",
    )
    assert negaware("train", folder / "tiny.yaml", faults=loading).code == -9  # the faults do stand in the way


def test_existing_run_folder(folder: Path, tmp_path: Path) -> None:
    config, run, before = folder / "tiny.yaml", folder / "run", contents(folder / "run")
    assert_refused(
        negaware("train", config),
        f"run folder {run} already holds a run; --resume goes on with it, --force deletes it first",
    )
    ended = negaware("train", config, "--resume", "--objective", "grpo")
    assert_refused(
        ended,
        f"{run} is of another config: objective.name was 'nft' there and is 'grpo' now; set it back, or choose another run.folder.",
    )
    for option in ("--force", "--resume"):
        ended = negaware("train", config, option, "--run.folder", config)
        assert_refused(ended, f"run folder {config} is a file; choose another path")
        ended = negaware("train", config, option, "--run.folder", folder)
        assert ended.code == 2
        assert "not a run folder" in ended.err
    assert contents(run) == before
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "notes.txt").write_text("mine")
    (copy / "answers/000099.jsonl").write_text("")
    assert negaware("train", config, "--force", "--run.folder", copy).code == 0
    assert (copy / "notes.txt").read_text() == "mine"
    assert not (copy / "answers/000099.jsonl").exists()


def test_nothing_to_learn(folder: Path, tmp_path: Path) -> None:
    """All answers wrong: it says so and what to change; what was done so far is in a checkpoint."""
    data = tmp_path / "hard.jsonl"
    data.write_text('{"question": "0", "answer": "77"}\n')
    run = tmp_path / "run"
    ended = negaware("train", folder / "tiny.yaml", "--task.path", data, "--run.folder", run)
    assert ended.code == 2
    assert ended.err.startswith(
        "negaware: error: None of the 32 questions of this step had both right and wrong answers (0 all right, 32 all wrong, "
    )
    assert "choose an easier task" in ended.err
    assert "rollout.completions is 6" in ended.err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000"]


def test_nothing_to_learn_later_on(folder: Path, tmp_path: Path) -> None:
    """A step that finds nothing loses none before it: the run goes on once it may ask more questions."""
    one = (
        "--run.folder",
        tmp_path / "run",
        "--rollout.questions",
        1,
        "--training.optimizer_steps",
        1,
        "--run.steps",
        6,
    )
    one = (*one, "--run.checkpoint_every", 100)
    ended = negaware("train", folder / "tiny.yaml", *one, "--rollout.max_sampled_questions", 1)
    assert ended.code == 2
    assert "None of the 1 questions" in ended.err
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    assert step > 0
    ended = negaware("train", folder / "tiny.yaml", *one, "--rollout.max_sampled_questions", 50, "--resume")
    assert "max_sampled_questions: 50" in (tmp_path / "run/config.yaml").read_text()
    assert (ended.code, ended.err) == (0, "")
    steps = [json.loads(line)["step"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(7))
    assert f"step {step + 1}/6" in ended.out
    assert f"step {step}/6" not in ended.out


def test_a_loss_that_is_not_finite(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = negaware("train", folder / "tiny.yaml", "--training.learning_rate", "1e30", "--run.folder", run)
    assert ended.code == 2
    said = r"negaware: error: The (loss|gradient norm) of optimizer step 2 is (nan|inf); the weights are as they were"
    assert re.match(said, ended.err)
    assert ended.err.count("\n") == 1
    assert "NaN" not in (run / "metrics.jsonl").read_text()


def host_is_full() -> None:
    torch.empty(10**15)


def gpu_is_full() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("full", [host_is_full, gpu_is_full])
def test_a_lack_of_memory_says_what_to_lower(folder: Path, full, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("negaware.training.step.Trainer.step", lambda *_: full())
    assert main(["train", str(folder / "tiny.yaml"), "--run.folder", str(tmp_path / "run")]) == 2
    said = r"negaware: error: not enough memory \(.*tried to allocate .*\); lower training.micro_batch_tokens or .*\n$"
    assert re.match(said, capsys.readouterr().err, re.IGNORECASE)


def test_grade(tmp_path: Path) -> None:
    file, output = tmp_path / "pairs.jsonl", tmp_path / "verdicts.jsonl"
    pairs = [("so \\boxed{4}", "4"), ("5", "4"), ("I can not tell what it is.", "4")]
    file.write_text("".join(json.dumps({"prediction": text, "gold": gold}) + "\n" for text, gold in pairs))
    expected = [
        {"correct": True, "reason": "correct", "extracted": "4"},
        {"correct": False, "reason": "wrong", "extracted": "5"},
        {"correct": False, "reason": "no_answer", "extracted": None},
    ]
    ended = negaware("grade", file)
    assert [json.loads(line) for line in ended.out.splitlines()] == expected
    assert (ended.code, ended.err) == (0, "3 graded: 1 correct, 1 wrong, 1 no answer (33.3% correct)\n")
    ended = negaware("grade", file, "-o", output, "--extract", "boxed")
    assert (ended.code, ended.out) == (0, "")
    assert [json.loads(line)["reason"] for line in output.read_text().splitlines()] == [
        "correct",
        "no_answer",
        "no_answer",
    ]
    ended = negaware("grade", file, "--extract", "box")
    assert ended.code == 2
    assert "'box'" in ended.err
    file.write_text('{"prediction": "4"}\n')
    assert_refused(
        negaware("grade", file, "-o", output),
        f'{file}, line 1: no gold; write lines such as {{"prediction": "\\\\boxed{{4}}", "gold": "4"}}',
    )
    assert len(output.read_text().splitlines()) == 3  # what was there before


def test_report(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ended = negaware("report", folder / "run", "-o", page)
    assert (ended.code, ended.out, ended.err) == (0, f"{page}\n", "")
    assert "</html>" in page.read_text()
    ended = negaware("report", folder / "run", tmp_path, "-o", page)
    assert_refused(
        ended,
        f"{tmp_path} is not a run folder: expected config.yaml and environment.json in it, but it has neither or only one of them",
    )


def test_audit(folder: Path, tmp_path: Path) -> None:
    assert negaware("audit", folder / "train.jsonl").code == 0
    ended = negaware("audit", "gsm9k")
    assert ended.code == 2
    assert "there is no task 'gsm9k'; did you mean 'gsm8k'?" in ended.err


def test_an_audit_with_a_failure_ends_in_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"question": "q", "answer": "1"}\n')
    monkeypatch.setattr(Task, "as_answer", lambda task, value: "The answer is 2")  # as if the form didn't suit
    assert main(["audit", str(problems)]) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "-1"], "temperature: Input should be greater than or equal to 0, got -1.0"),
        (["--top-p", "0"], "top_p: Input should be greater than 0, got 0.0"),
    ],
)
def test_evaluate_refuses_options_in_one_sentence(folder: Path, arguments: list[str], sentence: str) -> None:
    ended = negaware("evaluate", folder / "run" / "model", "--task", "arithmetic:test", *arguments)
    assert_refused(ended, sentence)


def test_evaluate_finds_a_bad_output_before_it_samples(folder: Path, tmp_path: Path) -> None:
    options = ["--task", "arithmetic:test", "--max-new-tokens", "6", "-o", tmp_path]
    ended = negaware("evaluate", folder / "run" / "model", *options)
    assert ended.code == 2
    assert f"{tmp_path} can't be written" in ended.err
    assert ended.out == ""


def test_a_run_folder_is_no_model(folder: Path) -> None:
    ended = negaware("evaluate", folder / "run", "--task", "arithmetic:test")
    assert_refused(ended, f"{folder / 'run'} is a run folder; its model is {folder / 'run' / 'model'}.")


@pytest.mark.parametrize("option", ["--resume", "--force"])
def test_a_run_that_another_process_trains_is_left_alone(folder: Path, tmp_path: Path, option: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / "summary.json").unlink()
    before = contents(run)
    with RunFolder(run).locked():
        ended = negaware("train", folder / "tiny.yaml", "--run.steps", 2, "--run.folder", run, option)
    assert_refused(ended, f"another process is training in {run}; wait until it ends, or choose another run.folder")
    assert contents(run) == before
    if option == "--resume":
        assert "loading" not in ended.out


def test_closed_output(tmp_path: Path) -> None:
    """A daemon may start the command with its output closed."""
    file = tmp_path / "pairs.jsonl"
    file.write_text("\ufeff" + '{"prediction": "4", "gold": "4"}\n')  # with the mark that some editors write first
    command = f"{sys.executable} -m negaware grade {file} >&- 2>&-"
    assert subprocess.run(["/bin/sh", "-c", command], check=False).returncode == 0


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    """`negaware grade FILE | head` ends in silence when nobody reads on."""
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prediction": "4", "gold": "4"}\n')
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "negaware", "grade", str(file)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr in ("", "1 graded: 1 correct (100.0% correct)\n")


def test_questions_longer_than_wanted_are_left_out_and_counted(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "mixed.jsonl"
    short = (folder / "train.jsonl").read_text()
    data.write_text(short + json.dumps({"question": "0 " * 40, "answer": "1"}) + "\n")
    options = (
        "--task.path",
        data,
        "--run.folder",
        tmp_path / "run",
        "--rollout.max_prompt_tokens",
        10,
        "--run.steps",
        1,
    )
    ended = negaware("train", folder / "tiny.yaml", *options)
    assert (ended.code, ended.err) == (0, "")
    note = "1 of 10 problems are left out: their prompts have more than 10 tokens (rollout.max_prompt_tokens).\n"
    assert ended.out.count("left out") == ended.out.count(note) == 1
