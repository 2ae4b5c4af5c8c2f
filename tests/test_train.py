"""A whole run through `main`, and everything that it leaves behind; all objectives; a toy task that is learnt."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from negaware.cli import main
from negaware.config import load_config, parse_config
from negaware.estimates import paired_change
from negaware.loop.train import train
from negaware.objectives import OBJECTIVES
from negaware.objectives.ops import Reduction
from negaware.ranks import ALONE
from negaware.rollout.records import groups_from_json, groups_to_json
from negaware.training.optimizer import MasterOptimizer
from negaware.training.step import Trainer
from negaware.types import Group
from rounding import Exact, exact_logprobs, gamma
from tiny_run import VOCABULARY, contents, timeless_metrics, tiny_config, write_problems, write_tiny_config
from training.definition import defined
from training.made_groups import prompts_and_tokens

SAMPLED = {
    *("pass_rate", "informative_share", "all_right_share", "all_wrong_share", "truncated_share", "unverifiable_share"),
    *(
        "num_groups_sampled",
        "num_groups",
        "num_carried_groups",
        "num_surplus_groups",
        "num_uninformative_groups",
        "staleness_mean",
        "staleness_max",
        "answer_tokens",
        "tokens_per_second",
    ),
}
TRAINED = {
    *("loss", "grad_norm", "learning_rate", "entropy", "sampler_difference", "num_tokens", "num_optimizer_steps"),
    *("weight_right", "weight_wrong", "tokens_per_second", "share_at_epsilon", "share_at_log_ratio_cap"),
    "share_pass_rate_clamped",
}
JUDGED = {f"evaluation/{name}" for name in ("accuracy", "accuracy_low", "accuracy_high", "num_questions")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and its run, trained by `main` in this process."""
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", str(write_tiny_config(folder)), "--run.seed", "1"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return folder / "run"


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_there(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "report.html"),
        *("answers", "evaluations", "checkpoints", "model"),
    }
    assert [path.name for path in sorted((run / "answers").iterdir())] == [f"{step:06d}.jsonl" for step in range(1, 6)]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-000004", "step-000005"]
    assert "</html>" in (run / "report.html").read_text()
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"] == torch.__version__


def test_config_is_the_resolved_one(folder: Path, run: Path) -> None:
    config = load_config(folder / "tiny.yaml", ["--run.seed", "1"])
    assert yaml.safe_load((run / "config.yaml").read_text()) == config.resolved()


def test_metrics(run: Path) -> None:
    first, *steps = read_lines(run / "metrics.jsonl")
    assert first.keys() == {"step", "seconds", "processor_seconds", *JUDGED}
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5]
    expected = {f"rollout/{name}" for name in SAMPLED} | {f"train/{name}" for name in TRAINED}
    expected |= {f"verifier/{reason}" for reason in ("correct", "wrong", "no_answer", "timeout", "error")}
    expected |= {"step", "seconds", "processor_seconds", "time/sample", "time/train", "time/evaluate", "time/step"}
    for line in steps:
        # Every second step, and the last: one measure from step 0 to the end.
        assert line.keys() == expected | (JUDGED if line["step"] in (2, 4, 5) else set())
        assert line["train/num_optimizer_steps"] == 2
        if not line["rollout/num_carried_groups"]:  # those were sampled by an earlier policy
            assert line["train/sampler_difference"] < 1e-5
        assert line["train/learning_rate"] == 1e-2
        phases = line["time/sample"] + line["time/train"] + line["time/evaluate"]
        assert phases <= line["time/step"] < phases + 5
    seconds = [line["seconds"] for line in steps]
    assert seconds == sorted(seconds)


def test_answers_are_those_of_the_metrics(run: Path) -> None:
    carried = 0
    for line in read_lines(run / "metrics.jsonl")[1:]:
        answers = read_lines(run / f"answers/{line['step']:06d}.jsonl")
        assert len(answers) == 6 * (line["rollout/num_groups_sampled"] + line["rollout/num_carried_groups"])
        assert sum(answer["trained"] for answer in answers) == 6 * 4
        assert all(0 < answer["pass_rate"] < 1 for answer in answers if answer["trained"])
        assert sum(answer["num_tokens"] for answer in answers if answer["trained"]) == line["train/num_tokens"]
        sampled = answers[int(6 * line["rollout/num_carried_groups"]) :]
        assert sum(answer["correct"] for answer in sampled) == line["verifier/correct"]
        assert {answer["step"] for answer in answers} == {line["step"]}
        carried += line["rollout/num_carried_groups"]
        for answer in answers:
            assert answer["correct"] == (answer["reason"] == "correct")
            assert not (answer["correct"] and answer["finish_reason"] == "length")
            if answer["correct"]:
                assert int(answer["extracted"]) == int(answer["gold"])
    assert carried > 0


def test_summary(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    seconds = ["train_seconds", "total_seconds", "processor_seconds"]
    assert list(summary) == ["before", "after", "change", *seconds, "steps"]
    metrics = read_lines(run / "metrics.jsonl")
    assert summary["steps"] == 5
    assert summary["train_seconds"] == pytest.approx(sum(line["time/step"] for line in metrics[1:]), rel=0.05)
    assert summary["train_seconds"] < metrics[-1]["seconds"] < summary["total_seconds"]
    assert 0 < metrics[0]["processor_seconds"] < metrics[-1]["processor_seconds"] < summary["processor_seconds"]
    found: dict[str, dict[str, list[float]]] = {"before": {}, "after": {}}
    for moment in ("before", "after"):
        assert list(summary[moment]) == ["greedy_accuracy", "avg_at_2"]
        for name, estimate in summary[moment].items():
            assert list(estimate) == ["value", "low", "high", "num_problems", "num_questions"]
            assert estimate["num_problems"] == 4
            problems = read_lines(run / f"evaluations/{moment}-{name}.jsonl")
            shares = [sum(a["correct"] for a in problem["answers"]) / len(problem["answers"]) for problem in problems]
            found[moment][name] = shares
            assert estimate["value"] == pytest.approx(sum(shares) / 4)
            assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    assert list(summary["change"]) == ["greedy_accuracy", "avg_at_2"]
    for name, change in summary["change"].items():
        assert change == asdict(paired_change(found["before"][name], found["after"][name]))
    # The curve is one measure: three problems, while the figures before and after have all four.
    assert {line["evaluation/num_questions"] for line in metrics if "evaluation/accuracy" in line} == {3}
    first_three = found["before"]["greedy_accuracy"][:3]
    assert metrics[0]["evaluation/accuracy"] == pytest.approx(sum(first_three) / 3)
    assert metrics[-1]["evaluation/accuracy"] == pytest.approx(sum(found["after"]["greedy_accuracy"][:3]) / 3)


def test_the_model_loads_without_us(run: Path) -> None:
    """It is the trained one: transformers' greedy answers are those of the evaluation after training."""
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.get_vocab() == {text: index for index, text in enumerate(VOCABULARY)}
    for problem in read_lines(run / "evaluations/after-greedy_accuracy.jsonl"):
        messages = [{"role": "user", "content": problem["question"]}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**prompt, do_sample=False, max_new_tokens=6)[0, prompt["input_ids"].shape[1] :]
        assert tokenizer.decode(tokens, skip_special_tokens=True) == problem["answers"][0]["text"]


def test_the_same_seed_gives_the_same_run_and_another_another(folder: Path, tmp_path: Path) -> None:
    def losses(run: Path) -> list[float]:
        return [line.get("train/loss") for line in read_lines(run / "metrics.jsonl")]

    for seed in (1, 2):
        where = ["--run.folder", str(tmp_path / f"seed{seed}"), "--run.seed", str(seed), "--run.steps", "5"]
        assert main(["train", str(folder / "tiny.yaml"), *where]) == 0
    assert losses(tmp_path / "seed1") == losses(folder / "run")
    assert losses(tmp_path / "seed2") != losses(folder / "run")


OTHERS = ["rft", "grpo", "dr_grpo", "dapo", "real"]
RARE = ["infonca", "asymre", "cispo", "dppo", "gspo", "maxrl", "psr_nsr", "signed", "topr"]
CLIPPED = {"grpo", "dr_grpo", "dapo", "dppo", "gspo", "maxrl", "psr_nsr"}


def test_the_other_objectives_are_all() -> None:
    assert {"nft", *OTHERS, *RARE} == set(OBJECTIVES)


@pytest.mark.parametrize("objective", [*OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in RARE)])
def test_the_other_objectives(tmp_path: Path, objective: str) -> None:
    config = parse_config(tiny_config(tmp_path, objective=objective, run__steps=2, evaluation__during=None))
    lines = read_lines(train(config) / "metrics.jsonl")[1:]
    assert len(lines) == 2
    for line in lines:
        assert line["train/weight_right"] > 0
        assert (line["train/weight_wrong"] > 0) == (objective != "rft")
        assert ("train/share_at_clip" in line) == (objective in CLIPPED)
        assert not JUDGED & line.keys()


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_on_policy_nft_is_grpo_run_for_run_under_one_reduction(
    tmp_path: Path, reduction: Reduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One optimizer step a rollout, π_old computed again: the same gradients but for rounding, so the same run.

    AdamW makes a whole step of a gradient that is nothing but rounding. So GRPO takes each of NFT's in its own's place,
    compared to what is exact for both, and what follows is the same to the last digit.
    """
    objectives = {"nft": {"name": "nft", "prompt_weight": "grpo"}, "grpo": {"name": "grpo"}}
    once = {"training__optimizer_steps": 1, "training__old_logprobs": "recomputed", "evaluation__during": None}
    exact: list[Exact] = []
    of_nft: list[tuple[list[Tensor], Tensor]] = []
    learn, move = Trainer.step, MasterOptimizer.step

    def define(self: Trainer, groups: Sequence[Group], *arguments: Any) -> dict[str, float]:
        if len(exact) < 3:
            own = iter(
                exact_logprobs(self.network.model, prompts_and_tokens(groups)).value.tolist()
            )  # some were sampled a step before
            on_policy = [
                replace(
                    group,
                    completions=tuple(
                        replace(done, logprobs=np.float32(list(islice(own, done.num_tokens))))
                        for done in group.completions
                    ),
                )
                for group in groups
            ]
            exact.append(defined(self.network.model, on_policy, "grpo", {}, reduction)[0])
        return learn(self, groups, *arguments)

    def compare(self: MasterOptimizer, norm: Tensor) -> None:
        gradients, step = [master.grad.clone() for master in self.masters.values()], self.num_steps_done
        exact[step].assert_near(torch.cat([each.flatten() for each in gradients]), times=2)  # π_old is rounded too
        if len(of_nft) == step:
            of_nft.append((gradients, norm))
        for master, gradient in zip(self.masters.values(), of_nft[step][0], strict=True):
            master.grad = gradient.clone()
        move(self, of_nft[step][1])

    monkeypatch.setattr(Trainer, "step", define)
    monkeypatch.setattr(MasterOptimizer, "step", compare)
    runs = {}
    for name, objective in objectives.items():
        changes = once | {"objective": objective | {"reduction": reduction}, "run__folder": str(tmp_path / name)}
        runs[name] = train(parse_config(tiny_config(tmp_path, run__steps=3, **changes)))
    assert len(exact) == len(of_nft) == 3
    assert contents(runs["nft"] / "answers") == contents(runs["grpo"] / "answers")
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in runs.values())
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name
    lines = (timeless_metrics(folder)[1:] for folder in runs.values())
    for step, (own, other) in enumerate(zip(*lines, strict=True)):
        assert own["train/grad_norm"] == pytest.approx(other["train/grad_norm"], rel=0, abs=4 * exact[step].error)
        assert own["train/entropy"] == other["train/entropy"]
        for name in ("weight_right", "weight_wrong"):  # sums of a token's weight, a quotient of a few operations
            tokens = own["train/num_tokens"]
            assert own[f"train/{name}"] == pytest.approx(other[f"train/{name}"], rel=2 * gamma(tokens + 20))


def test_it_learns(tmp_path: Path) -> None:
    """Whatever is asked, 1 is right: a few steps of NFT teach that, held-out questions included."""
    data = tiny_config(tmp_path, run__steps=12, rollout__completions=8, rollout__questions=6, evaluation__during=None)
    write_problems(tmp_path / "train.jsonl", "111111111")
    write_problems(tmp_path / "test.jsonl", "1111")
    summary = json.loads((train(parse_config(data)) / "summary.json").read_text())
    assert summary["before"]["avg_at_2"]["value"] < 0.5
    assert summary["after"]["avg_at_2"]["value"] > 0.8
    assert summary["after"]["greedy_accuracy"]["value"] == 1


def test_a_batch_that_is_not_full_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tiny_config(tmp_path, run__steps=2, rollout__max_sampled_questions=6, evaluation__during=None)
    lines = read_lines(train(parse_config(data)) / "metrics.jsonl")[1:]
    told = [
        f"{line['rollout/num_groups']:.0f} of 4 informative questions found in "
        f"{line['rollout/num_groups_sampled']:.0f} asked (rollout.max_sampled_questions); training on those"
        for line in lines
        if line["rollout/num_groups"] < 4
    ]
    assert told
    assert [line for line in capsys.readouterr().out.splitlines() if "informative" in line] == told
    # A whole step's four questions make two mini-batches, of two each; these keep that size.
    assert {line["train/num_optimizer_steps"] == max(1, line["rollout/num_groups"] // 2) for line in lines} == {True}
    assert min(line["train/num_optimizer_steps"] for line in lines) == 1


def test_prompts_that_leave_less_room_are_told_and_end_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = tiny_config(tmp_path, run__steps=1, evaluation__during=None)
    problems = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    problems += [{"question": "0" * length, "answer": "1"} for length in (59, 70)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, problems)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, problems[8:])))
    folder = train(parse_config(data))
    told = [line for line in capsys.readouterr().out.splitlines() if "prompts" in line]
    less = (
        "prompts leave an answer fewer tokens than max_new_tokens, 6, for the model takes 64 in all; the longest leaves"
    )
    assert told == [
        "1 of 11 problems are left out: their prompts have 64 tokens or more, all that the model takes.",
        f"train: 1 of 10 {less} 3.",
        f"test: 2 of 3 {less} 0; 1 leave none: they are not asked, and count as wrong.",
    ]
    for name in ("before-greedy_accuracy", "after-avg_at_2"):
        assert [line["room"] for line in read_lines(folder / "evaluations" / f"{name}.jsonl")] == [6, 3, 0]


JUDGE = """
def is_right(answer, problem):
    if len(answer) % 3 == 0:
        raise KeyError("no such column")
    return answer.startswith("1")
"""


def test_a_judge_that_fails_now_and_then_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "judge_of_test_train.py").write_text(JUDGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = tiny_config(tmp_path, run__steps=1, evaluation__during=None)
    data["task"]["verifier"] = "judge_of_test_train:is_right"
    (line,) = read_lines(train(parse_config(data)) / "metrics.jsonl")[1:]
    num_failed, num_answers = line["verifier/error"], 6 * line["rollout/num_groups_sampled"]
    assert num_failed > 0
    said = f"the verifier failed on {num_failed:.0f} of {num_answers:.0f} answers, which count as wrong; first with "
    assert said + "\"KeyError: 'no such column'\"" in capsys.readouterr().out


class FailingTracker:
    def log(self, step: int, metrics: object) -> None:
        if step == 3:
            raise OSError("no connection")

    def close(self) -> None:
        pass


def test_a_tracker_that_fails_loses_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config(tiny_config(tmp_path, run__checkpoint_every=100))
    monkeypatch.setattr("negaware.loop.train.open_trackers", lambda *_, **__: [FailingTracker()])
    with pytest.raises(OSError, match="no connection"):
        train(config)
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-000003"]


def test_a_missing_tracker_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config(tiny_config(tmp_path, run__steps=1, evaluation__during=None))
    before = contents(train(config))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs a package that isn't installed"):
        train(parse_config(tiny_config(tmp_path, run__steps=1, run__trackers=["wandb"])), force=True)
    assert contents(tmp_path / "run") == before


def test_a_group_survives_json(run: Path) -> None:
    surplus = [json.loads((path / "state.json").read_text())["surplus"] for path in (run / "checkpoints").iterdir()]
    for data in [group for groups in surplus for group in groups]:
        (group,) = groups_from_json([data], ALONE)
        assert 0 < group.pass_rate < 1
        assert len(group.completions) == len(group.texts) == len(group.verdicts) == 6
        assert all(one.num_tokens == len(one.logprobs) for one in group.completions)
        assert json.loads(json.dumps(groups_to_json([group], ALONE))) == [data]
