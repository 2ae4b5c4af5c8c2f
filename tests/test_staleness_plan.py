"""Sampling ahead, as the plan has it: tiny cases by hand, and averages against a simulation of single answers."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from negaware.cli import main
from negaware.planning.cost import Work, decode_seconds, prefill_seconds
from negaware.planning.lengths import Lengths, log_normal
from negaware.planning.sampling import Sampling, going_on
from negaware.planning.setting import GIB, Machine, Setting
from negaware.planning.staleness import carried, in_turn, overlapped, pace_of_split, splits, training_seconds
from plan_settings import recipe, tiny_setting
from simulated_sampling import Simulation
from tiny_run import write_tiny_config

TENS = Lengths(np.array([10, 10]))
"""All answers have 10 tokens."""
SHAPES = {
    "7b": {"long tail": log_normal(1_000, 700, 3_584), "uniform": Lengths(np.arange(1, 2_000))},
    "32b": {"long tail": log_normal(3_250, 2_500, 14_336), "uniform": Lengths(np.arange(1, 6_500))},
}


def two_questions(folder: Path, rows: int) -> Setting:
    """2 questions × 2 answers on one engine of so many rows, questions of 3 tokens."""
    limits = {"rollout__max_new_tokens": 10, "rollout__max_prompt_tokens": 3}
    return replace(tiny_setting(folder, 1, "cuda", **limits), questions=2, completions=2, max_sequences=rows)


def by_hand(setting: Setting, machine: Machine, rows: int, steps: int) -> float:
    """Seconds of decode steps of rows that are halfway, on average, and of two prefills of 3 tokens."""
    read = setting.itemsize * (2 * setting.model.layer_parameters + 10 * 32)
    read += rows * (3 + 5) * setting.model.cache_bytes(setting.itemsize)
    return steps * read / (0.4 * machine.bandwidth) + prefill_seconds(setting, machine, 2 * 3)


MEMORY_BOUND = Machine(operations=1e20)


def test_equal_answers_in_turn_by_hand(tmp_path: Path) -> None:
    """4 answers of 10 tokens in 2 rows are 20 steps of 2; in 4 rows 10 of 4; in 3 rows 10 of 3, then 10 of 1."""
    for rows, seconds in [
        (2, lambda setting: by_hand(setting, MEMORY_BOUND, 2, 20)),
        (4, lambda setting: by_hand(setting, MEMORY_BOUND, 4, 10)),
        (3, lambda setting: by_hand(setting, MEMORY_BOUND, 3, 10) + by_hand(setting, MEMORY_BOUND, 1, 10)),
    ]:
        setting = two_questions(tmp_path, rows)
        sampled, mean_rows = Sampling(setting, MEMORY_BOUND, TENS, 1).alone()
        assert sampled == pytest.approx(seconds(setting), rel=1e-3)
        assert mean_rows == pytest.approx(4 * 10 / (10 if rows == 4 else 20), rel=1e-3)
        walked, stale = Simulation(setting, MEMORY_BOUND, TENS, rows, 0, 0.0, overlaps=False, stride=0.25).run(2, 0)
        assert walked == pytest.approx(seconds(setting), rel=0.02)
        assert stale == 0


def test_equal_answers_carried_by_hand(tmp_path: Path) -> None:
    """In 2 rows an update comes every 20 steps: a row's answer is 0 to 10 tokens old in half of them, 2.5 of 10.

    In 16 rows one more batch goes on: an update every 5 steps, of 8 rows; half of it was drawn a version before.
    """
    for rows, full, steps, staleness in [(2, 2, 20, 0.25), (16, 8, 5, 0.5)]:
        setting = two_questions(tmp_path, rows)
        found = going_on(Sampling(setting, MEMORY_BOUND, TENS, 2), 1, 0.0, overlaps=False)
        assert found.rows == pytest.approx(full)
        assert found.steps == pytest.approx(steps)
        again = prefill_seconds(setting, MEMORY_BOUND, full * 8)
        assert found.period == pytest.approx(by_hand(setting, MEMORY_BOUND, full, steps) + again)
        assert found.staleness(1) == pytest.approx(staleness, rel=0.01)


def test_overlapped_by_hand(tmp_path: Path) -> None:
    """Ranks that train for long are waited for, and all that may be under way is finished by then; training that takes
    no time leaves a step what carrying does."""
    setting = two_questions(tmp_path, 16)
    slow = going_on(Sampling(setting, MEMORY_BOUND, TENS, 3), 2, 1e-3, overlaps=True)
    assert slow.period == pytest.approx(1e-3)
    assert slow.staleness(2) == pytest.approx(2)
    instant = [going_on(Sampling(setting, MEMORY_BOUND, TENS, 3), 2, 0.0, overlaps=flag) for flag in (True, False)]
    assert instant[0].period == pytest.approx(instant[1].period)
    # A batch's 10 steps are those of the period in which it is asked, and of the wait in the next one.
    one_ahead = going_on(Sampling(setting, MEMORY_BOUND, TENS, 2), 1, slow.decode_step * 9, overlaps=True)
    assert 2 * one_ahead.steps - one_ahead.pause / one_ahead.decode_step == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "gpus", "shape"),
    [
        ("7b", 2, "long tail"),  # of as many questions as fill an engine as 32 GPUs' do
        *(
            pytest.param(size, gpus, shape, marks=pytest.mark.slow)
            for size in ("7b", "32b")
            for gpus in (8, 32, 128)
            for shape in ("long tail", "uniform")
        ),
    ],
)
def test_averages_are_those_of_single_answers(size: str, gpus: int, shape: str) -> None:
    """A step's seconds within 10 %, staleness within a quarter of an update, but where questions wait for ranks."""
    lengths, machine = SHAPES[size][shape], Machine(160 * GIB if gpus == 2 else 80 * GIB)
    setting = recipe(size, gpus, *(["--rollout.questions", "32"] if gpus == 2 else []))

    def walked(setting: Setting, staleness: int, pause: float, overlaps: bool) -> tuple[float, float]:
        rows = Sampling(setting, machine, lengths, 1 + staleness).rows
        stride = lengths.mean / 20
        simulation = Simulation(setting, machine, lengths, rows, staleness, pause, overlaps, stride=stride)
        return simulation.run(*((6, 3) if staleness else (1, 0)))

    training = training_seconds(setting, machine, lengths)
    planned = in_turn(setting, machine, lengths)
    assert planned.seconds == pytest.approx(walked(setting, 0, training, False)[0], rel=0.1)
    planned = carried(setting, machine, lengths, 1)
    seconds, stale = walked(setting, 1, training, False)
    assert planned.seconds == pytest.approx(seconds, rel=0.1)
    assert planned.staleness == pytest.approx(stale, abs=0.25)
    planned_split = overlapped(setting, machine, lengths, 1)
    found = [
        (servers, trainers)
        for servers, trainers in splits(setting, machine)
        if pace_of_split(servers, trainers, machine, lengths, 1) == planned_split
    ]
    assert (planned_split is None) == (not found)
    for servers, trainers in found[:1]:
        seconds, stale = walked(servers, 1, training_seconds(trainers, machine, lengths), True)
        assert planned_split.seconds == pytest.approx(seconds, rel=0.1)
        assert stale - 0.25 < planned_split.staleness <= 1


def test_log_normal_lengths() -> None:
    lengths = log_normal(3_250, 2_500, 14_336)
    assert lengths.mean == pytest.approx(3_250, abs=1)
    assert np.median(lengths.values) == pytest.approx(2_500, rel=1e-3)
    assert lengths.longest == 14_336
    # Where the limit is near, the mean first rises with σ, then falls: the smaller σ is taken.
    assert log_normal(5.1, 5, 10).mean == pytest.approx(5.1, abs=0.1)
    # σ = 0.725 without the cut, by exp(σ²/2) = 1.3: then 0.7 % would be longer than the limit.
    assert float(lengths.survival(np.array([14_335]))[0]) == pytest.approx(0.008, abs=0.003)


def test_tokens_of_lengths_by_hand() -> None:
    lengths = Lengths(np.array([1, 3, 3, 5]))
    assert (lengths.mean, lengths.mean_square, lengths.longest) == (3, 11, 5)
    assert lengths.survival(np.array([0, 1, 2.5, 3, 5])).tolist() == [1, 0.75, 0.75, 0.25, 0]
    assert lengths.drawn(np.array([0, 1, 2, 4, 9])).tolist() == [0, 1, 1.75, 2.75, 3]


def test_the_command_shows_what_sampling_ahead_gives(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, answers = str(write_tiny_config(tmp_path)), tmp_path / "000001.jsonl"
    answers.write_text("".join(json.dumps({"num_tokens": length}) + "\n" for length in (2, 4, 6)))
    command = ["plan", config, "--gpus", "2", "--memory-gib", "1", "--staleness", "2"]
    assert main([*command, "--lengths", str(answers)]) == 0
    printed = capsys.readouterr().out
    assert "answers of 4 tokens on average, staleness at most 2" in printed
    cells = {name: line.split()[-3:] for line in printed.splitlines() for name in ROWS if line.strip().startswith(name)}
    assert cells["GPUs that sample"] == ["2", "2", "1"]
    assert cells["GPUs that train"] == ["2", "2", "1"]
    assert cells["mean staleness, updates"][0] == "0.00"
    assert 0 < float(cells["mean staleness, updates"][1]) <= 2
    assert main([*command[:3], "1", *command[4:], "--lengths", "2.5,2"]) == 0  # one GPU can't be split
    printed = capsys.readouterr().out
    assert re.search(r"seconds a step +[\d.]+ +[\d.]+ +–", printed)
    assert "overlapped: no split of the GPUs" in printed


ROWS = ("GPUs that sample", "GPUs that train", "mean staleness, updates")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--staleness", "2"], ["--lengths"]),
        (["--lengths", "4,3"], ["--staleness"]),
        (["--staleness", "2", "--lengths", "3,4"], ["'3,4'", "median < mean < 6"]),
        (["--staleness", "2", "--lengths", "7,4"], ["'7,4'", "rollout.max_new_tokens"]),
        (["--staleness", "2", "--lengths", "nan,4"], ["'nan,4'", "mean and the median"]),
        (["--staleness", "2", "--lengths", "5,1"], ["'5,1'", "no log-normal"]),
        (["--staleness", "2", "--lengths", "a,4"], ["'a,4'", "two numbers"]),
        (["--staleness", "2", "--lengths", "none.jsonl"], ["none.jsonl", "MEAN,MEDIAN"]),
        (["--staleness", "2", "--lengths", "too_long.jsonl"], ["answer 2", "7 tokens", "--rollout.max_new_tokens 7"]),
        (["--staleness", "2", "--lengths", "others.jsonl"], ["answer 1", "num_tokens is None"]),
        (["--staleness", "2", "--lengths", "empty.jsonl"], ["no answers"]),
        (["--staleness", "2", "--lengths", "torn.jsonl"], ["ends in the middle"]),
    ],
)
def test_bad_lengths(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    options: list[str],
    said: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("too_long.jsonl").write_text('{"num_tokens": 2}\n{"num_tokens": 7}\n')
    Path("others.jsonl").write_text('{"answer": "4"}\n')
    Path("empty.jsonl").write_text("")
    Path("torn.jsonl").write_text('{"num_tokens": 2}\n{"num_tok')
    config = str(write_tiny_config(tmp_path))
    capsys.readouterr()
    assert main(["plan", config, "--gpus", "2", "--memory-gib", "1", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(part in printed.err for part in said), printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("value", ["0", "-1", "1.5"])
def test_bad_staleness(capsys: pytest.CaptureFixture, value: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "c.yaml", "--gpus", "2", "--memory-gib", "1", "--staleness", value, "--lengths", "4,3"])
    assert end.value.code == 2
    assert f"argument --staleness: '{value}' is not a whole number above 0" in capsys.readouterr().err


def test_a_batch_that_is_trained_has_the_mean_length(tmp_path: Path) -> None:
    setting = two_questions(tmp_path, 4)
    machine, lengths = Machine(), Lengths(np.array([2, 6]))
    cut = Work(replace(setting, answer_tokens=4))
    rows = cut.micro_batches * cut.rows_together
    expected = setting.optimizer_steps * rows * cut.row(setting) / (0.4 * 989e12)
    assert training_seconds(setting, machine, lengths) == pytest.approx(expected)
    assert float(decode_seconds(setting, machine, 1, 0)) == pytest.approx(
        by_hand(setting, machine, 0, 1) - prefill_seconds(setting, machine, 6)
    )
