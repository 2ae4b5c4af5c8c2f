"""The benchmark's pure parts: what is asked, how measurements become figures, and that the padded loop is our maths."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from negaware.objectives import OBJECTIVES
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion, Group, Problem, Verdict
from tiny_models import VOCABULARY, llama, network
from training.definition import defined

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import work  # noqa: E402
from contenders.padded import PaddedTrainer  # noqa: E402
from contenders.rollouts import synthetic_groups  # noqa: E402
from contenders.verifier import grade_ours, pairs  # noqa: E402
from figures import Figure, measurement_table, pairwise_ratios, ratio_table  # noqa: E402
from limit import ProductTimes, decode_rows, limit_seconds  # noqa: E402
from memory import PeakMemory  # noqa: E402
from rows import all_rows  # noqa: E402

from negaware.verifiers.math import MathVerifier  # noqa: E402

PROMISED = {
    *("step_vs_trl_24", "step_vs_trl_128", "sampling_vs_vllm_24", "sampling_vs_vllm_128", "sampling_vs_vllm_512"),
    *("sampling_vs_generate_24", "training_vs_padded_short", "training_vs_padded_long", "step_over_limit"),
    *("logprob_difference", "grade_numeric_per_second"),
}


def made_groups(num_groups: int = 3) -> list[Group]:
    """Groups of unequal prompts and answers, one of them all wrong."""
    groups = []
    for index in range(num_groups):
        lengths = [1 + (index + 3 * k) % 6 for k in range(4)]
        completions = tuple(
            Completion.drawn(
                tuple((7 * index + 5 * k + 3 * t) % VOCABULARY for t in range(length)), (-3.5,) * length, "stop", 0, k
            )
            for k, length in enumerate(lengths)
        )
        verdicts = tuple(Verdict(index > 0 and k < index, "wrong") for k in range(4))
        prompt = tuple((11 * index + t) % VOCABULARY for t in range(3 + index))
        groups.append(Group(Problem(str(index), "", ""), prompt, completions, ("",) * 4, verdicts))
    return groups


def test_ratios_are_paired_before_their_median():
    measured = {"theirs": [{"s": 10.0}, {"s": 40.0}, {"s": 90.0}], "ours": [{"s": 5.0}, {"s": 4.0}, {"s": 30.0}]}
    figure = Figure("ratio", ("theirs", "s"), ("ours", "s"))
    assert figure.pairs(measured) == [2.0, 10.0, 3.0]
    assert figure.value(measured) == 3.0  # the ratio of the medians would be 8
    assert Figure("alone", ("ours", "s")).value(measured) == 5.0
    with pytest.raises(ValueError, match="can't be paired"):
        pairwise_ratios([1.0], [1.0, 2.0])


def test_tables_show_medians_and_pairs():
    measured = {"A": [{"s": 1.0}, {"s": 3.0}, {"s": 2.0}], "B": [{"s": 2.0}, {"s": 3.0}, {"s": 8.0}]}
    assert "| A      |    2.00 |" in measurement_table(measured, {"s": "seconds", "absent": "nothing"})
    assert "| f      |   2.00 |   1.00 |   4.00 |   2.00 |" in ratio_table(
        [Figure("f", ("B", "s"), ("A", "s"))], measured
    )


def test_the_rows_give_every_promised_figure():
    rows = all_rows("python")
    names = [figure.name for row in rows for figure in row.figures]
    assert set(names) >= PROMISED
    assert len(set(names)) == len(names)
    for row in rows:
        labels = {contestant.label for contestant in row.contestants}
        sides = [side for figure in row.figures for side in (figure.over, figure.under) if side]
        assert {label for label, _ in sides} <= labels
    assert [row.name for row in rows if row.quick] == ["step_24"]


@pytest.mark.slow
def test_every_contender_gets_the_same_work_each_time():
    for limit in work.LIMITS[:2]:  # the third asks the questions of the second
        asked = work.question_set(limit)
        assert asked == work.question_set(limit)
        assert len({question["question"] for question in asked}) == work.NUM_QUESTIONS
    short = work.TRAINING_SHAPES["short"]["answer_tokens"]
    assert (min(short), max(short), sum(short) / len(short)) == (2, 24, 11)
    long = work.TRAINING_SHAPES["long"]["answer_tokens"]
    assert (min(long), max(long), sum(long) / len(long)) == (64, 512, 288)
    assert synthetic_groups(work.TRAINING_SHAPES["short"], 8, 100) == synthetic_groups(
        work.TRAINING_SHAPES["short"], 8, 100
    )


@pytest.mark.parametrize("rows", [1, 5, 12])
def test_the_padded_loop_has_our_loss_and_gradient(rows):
    options = TrainingOptions(compute_dtype="float32", optimizer_steps=1, learning_rate=1e-30, weight_decay=0.0)
    groups = made_groups()
    trainer = Trainer(network(llama()), LossSettings(OBJECTIVES["nft"], {}, 1.0, 8), options, num_steps=1)
    padded = PaddedTrainer(llama(), options, rows)
    metrics = trainer.step(groups, seed=0)
    loss, norm = padded.accumulate(groups)
    _, exact_loss, exact_norm = defined(llama(), groups, "nft", {})
    for found in (loss, metrics["train/loss"]):
        exact_loss.assert_near(found)
    for found in (float(norm), metrics["train/grad_norm"]):
        exact_norm.assert_near(found)


def test_decode_rows_are_the_answers_still_going():
    assert decode_rows([1, 2, 4]) == [2, 1, 1]
    assert decode_rows([]) == []


def test_the_limit_counts_each_needed_product_once():
    model = llama().to(torch.bfloat16)
    products = ProductTimes(model)
    body = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.dim() == 2)
    assert products.layer_operations == 2 * body
    products.measure()
    groups = made_groups()
    found = limit_seconds(products, groups)
    lengths = [completion.num_tokens for group in groups for completion in group.completions]
    prompts = sum(len(group.prompt_ids) for group in groups)
    steps = sum(length - 1 for length in lengths)
    head = 2 * model.lm_head.weight.numel()
    assert found["sampling_gflop"] * 1e9 == pytest.approx(2 * body * (prompts + steps) + head * (3 + steps))
    assert found["training_gflop"] * 1e9 == pytest.approx(3 * (2 * body * (prompts + steps) + head * sum(lengths)))
    assert found["seconds"] == pytest.approx(found["sampling_seconds"] + found["training_seconds"])
    assert 0 < products.decode(8) < math.inf


def test_peak_memory_sees_what_was_freed_again():
    with PeakMemory() as memory:
        torch.ones(32 * 2**20 // 4).sum()
    assert 30 <= memory.measured()["growth_mb"] < 60  # the kernel counts in batches of pages


def test_graded_pairs_are_judged_as_they_were_made():
    numeric = pairs("numeric")
    assert numeric == pairs("numeric")
    with MathVerifier() as verifier:
        assert grade_ours(verifier, numeric) == sum(f"boxed{{{gold}}}" in text for text, gold in numeric)


def run_bench(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "bench.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**os.environ})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "nonsense"], "There is no row 'nonsense'"),
        (["--rows", "sampling_24", "--vllm-python", "/nowhere/python"], "`make bench` installs it"),
        (["--repeats", "0"], "measure at least once"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, said):
    result = run_bench(*arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_real_row_ends_in_its_json_line(tmp_path):
    result = run_bench("--rows", "verifier", "--repeats", "1", "--logs", str(tmp_path), timeout=900)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["grade_numeric_per_second"] > 100
    assert {"machine", "versions", "commit"} <= set(figures)
