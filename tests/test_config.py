"""Every shipped config is sound; whatever is wrong with one is said in one sentence; nothing is lost on the way."""

# ruff: noqa: E501
# The tables hold whole sentences.

from __future__ import annotations

import inspect
import runpy
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from negaware.config import Config, ConfigError, ObjectiveOptions, load_config, parse_config
from negaware.objectives import OBJECTIVES
from tiny_run import tiny_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted([*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/paper").glob("*.yaml")])
OBJECTIVE_OPTIONS = {model.model_fields["name"].default: model for model in get_args(get_args(ObjectiveOptions)[0])}


@pytest.fixture
def data() -> dict[str, Any]:
    return yaml.safe_load(CONFIGS[0].with_name("demo.yaml").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_config_and_its_way_through_yaml(path: Path) -> None:
    config = load_config(path)
    assert config.run.folder == Path("runs") / path.stem
    text = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
    again = parse_config(yaml.safe_load(text))
    assert again == config
    assert again.resolved() == config.resolved() == yaml.safe_load(text)


def test_a_task_given_by_name_takes_fields(data: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(data | {"task": "gsm8k:test"}))
    config = load_config(path, ["--task.num_problems", "4", "--run.trackers", "wandb"])
    given = config.task.model_dump(exclude_defaults=True) | {"kind": config.task.kind}
    assert given == {"kind": "benchmark", "name": "gsm8k", "split": "test", "num_problems": 4}
    assert config.run.trackers == ("wandb",)


def test_named_runs_are_there() -> None:
    names = {path.stem for path in CONFIGS}
    assert names >= {"demo", "gsm8k_nft", "gsm8k_rft", "gsm8k_grpo", "gsm8k_dapo", "nft_7b", "nft_32b"}


@pytest.mark.parametrize(
    ("name", "model", "tokens"),
    [("7b", "Qwen/Qwen2.5-Math-7B", (512, 3584)), ("32b", "Qwen/Qwen2.5-32B", (2048, 14336))],
)
def test_the_papers_table(name: str, model: str, tokens: tuple[int, int]) -> None:
    config = load_config(ROOT / f"configs/paper/nft_{name}.yaml")
    rollout, training, evaluation = config.rollout, config.training, config.evaluation
    assert config.model.name == model
    assert config.task.name == "dapo_math_17k"  # type: ignore[union-attr]
    assert config.objective.model_dump() == {
        "name": "nft",
        "epsilon": 1.0,
        "negative_weight": 1.0,
        "prompt_weight": "one_minus_rate",
        "ratio": "token",
        "positive_weight": 1.0,
        "reduction": "token_mean",
    }
    assert (rollout.questions, rollout.completions, rollout.temperature, rollout.top_p) == (512, 16, 1.0, 1.0)
    assert (rollout.max_prompt_tokens, rollout.max_new_tokens) == tokens
    assert (training.optimizer_steps, rollout.questions // training.optimizer_steps) == (16, 32)
    assert (training.learning_rate, training.schedule, training.betas) == (1e-6, "constant", (0.9, 0.999))
    assert (training.weight_decay, training.max_grad_norm, training.warmup_rollouts) == (0.1, 1.0, 10)
    assert (config.run.steps, config.run.steps * training.optimizer_steps) == (320, 5120)
    assert evaluation.during is not None
    final_temperature = {"7b": 1.0, "32b": 0.6}[name]
    for sampling, temperature in ((evaluation.during, 0.6), (evaluation.final, final_temperature)):
        assert (sampling.temperature, sampling.top_p, sampling.completions) == (temperature, 0.7, 32)
        assert sampling.max_new_tokens == tokens[1]


def test_the_gsm8k_runs_differ_in_their_objective_alone() -> None:
    configs = [load_config(ROOT / f"configs/gsm8k_{name}.yaml") for name in ("nft", "rft", "grpo", "dapo")]
    assert [config.objective.name for config in configs] == ["nft", "rft", "grpo", "dapo"]
    rest = [config.resolved() | {"objective": None} for config in configs]
    for one in rest:
        del one["run"]["folder"], one["rollout"]["overlong_buffer"]
    assert all(one == rest[0] for one in rest)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_options_are_those_of_its_loss(name: str) -> None:
    parameters = inspect.signature(OBJECTIVES[name].function).parameters.values()
    of_loss = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    assert OBJECTIVE_OPTIONS[name]().model_dump(exclude={"name", "reduction"}) == of_loss


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_reduction_is_the_objectives_own_or_the_chosen_one(name: str) -> None:
    assert OBJECTIVE_OPTIONS[name]().reduction == OBJECTIVES[name].reduction
    options, of_groups = OBJECTIVE_OPTIONS[name], OBJECTIVES[name].sees_groups
    for reduction in ("token_mean", "sequence_mean", "constant", "sequence_sum", "group_mean"):
        if of_groups and reduction != "group_mean":
            refused = f"reduction is {reduction}, but {name} has one term a group, whose reduction is group_mean; leave"
        elif not of_groups and reduction in ("sequence_sum", "group_mean"):
            whose = "ratio sequence's" if reduction == "sequence_sum" else "whole groups'"
            refused = f"reduction is {reduction}, which is {whose} alone; choose from token_mean, sequence_mean, con"
        else:
            assert options(reduction=reduction).reduction == reduction
            continue
        with pytest.raises(ValueError, match=refused):
            options(reduction=reduction)


def test_a_ratio_of_whole_answers_has_its_own_reduction() -> None:
    options = OBJECTIVE_OPTIONS["nft"]
    assert options(ratio="sequence").reduction == "sequence_sum"
    assert options(ratio="sequence", reduction="sequence_sum").reduction == "sequence_sum"
    for reduction in ("token_mean", "sequence_mean", "constant"):
        with pytest.raises(
            ValueError, match=f"reduction is {reduction}, but with ratio sequence an answer has one term"
        ):
            options(ratio="sequence", reduction=reduction)


def test_the_dapo_run_has_dapos_penalty_and_its_siblings_have_none() -> None:
    config = load_config(ROOT / "configs/gsm8k_dapo.yaml")
    assert config.objective.options == {"clip_low": 0.2, "clip_high": 0.28}
    assert (config.rollout.overlong_buffer, config.rollout.max_new_tokens) == (128, 512)
    for name in ("nft", "rft", "grpo"):
        assert load_config(ROOT / f"configs/gsm8k_{name}.yaml").rollout.overlong_buffer is None


# What is set (None: taken out) → the whole sentence.
REFUSED = [
    # names
    ({"modle": "x"}, "modle is no known field; did you mean model?"),
    ({"training.lerning_rate": 1}, "training.lerning_rate is no known field; did you mean training.learning_rate?"),
    ({"run.xyz": 1}, "run.xyz is no known field; known are folder, steps, seed, checkpoint_every, keep_checkpoints, "
     "trackers."),
    ({"task.limits": {"second": 9}}, "task.limits.second is no known field; did you mean task.limits.seconds?"),
    ({"task.limits": {"seconds": 0}}, "task.limits.seconds is 0; it should be greater than 0."),
    ({"task.limits": {"workers": 0}}, "task.limits.workers is 0; it should be at least 1."),
    ({"evaluation.during.evry": 1}, "evaluation.during.evry is no known field; did you mean evaluation.during.every?"),
    ({"task.hihg": 1}, "task.hihg is no known field; did you mean task.high?"),
    ({"objective": {"name": "nft", "clip": 0.2}}, "objective.clip is no known field; known are name, "
     "reduction, epsilon, negative_weight, prompt_weight, ratio, positive_weight."),
    ({"objective": "ntf"}, "objective is 'ntf'; it must be one of nft, rft, grpo, dr_grpo, dapo, "
     "asymre, cispo, dppo, gspo, infonca, maxrl, psr_nsr, real, signed, topr; did you mean nft?"),
    ({"objective": "ppo"}, "objective is 'ppo'; it must be one of nft, rft, grpo, dr_grpo, dapo, "
     "asymre, cispo, dppo, gspo, infonca, maxrl, psr_nsr, real, signed, topr; did you mean dppo?"),
    ({"task": {"kind": "arithmetics"}}, "task.kind is 'arithmetics'; it must be one of arithmetic, reasoning_gym, dataset, "
     "benchmark; did you mean arithmetic?"),
    ({"task": {"name": "gsm8k"}}, "task is {'name': 'gsm8k'}, which has no kind; it must be one of arithmetic, "
     "reasoning_gym, dataset, benchmark."),
    ({"task": "gsm9k"}, "task: there is no task 'gsm9k'; did you mean 'gsm8k'? (tasks: arithmetic, reasoning_gym:NAME, "
     "gsm8k, math, dapo_math_17k, aime24, aime25, amc23, math500, olympiadbench, minerva_math, a .jsonl or .parquet file, "
     "owner/name of a hub data set, or {kind: …})."),
    ({"device": "cud"}, "device is 'cud'; it must be one of auto, cpu, cuda; did you mean cuda?"),
    ({"run.trackers": ["wand"]}, "run.trackers.0 is 'wand'; it must be one of tensorboard, wandb, trackio; did you mean "
     "wandb?"),
    ({"training.schedule": 3}, "training.schedule is 3; it must be one of constant, cosine."),
    # missing
    ({"model": None}, "model is missing; add it to the config or give --model VALUE."),
    ({"run.steps": None}, "run.steps is missing; add it to the config or give --run.steps VALUE."),
    ({"evaluation": None}, "evaluation is missing; add it to the config or give --evaluation VALUE."),
    # types and ranges
    ({"run.steps": "ten"}, "run.steps is 'ten'; it should be a whole number."),
    ({"run.steps": 2.5}, "run.steps is 2.5; it should be a whole number."),
    ({"run.steps": 0}, "run.steps is 0; it should be at least 1."),
    ({"rollout.top_p": 1.5}, "rollout.top_p is 1.5; it should be at most 1."),
    ({"training.learning_rate": "fast"}, "training.learning_rate is 'fast'; it should be a number."),
    ({"training.learning_rate": float("nan")}, "training.learning_rate is nan; it should be a finite number."),
    ({"training.learning_rate": 0}, "training.learning_rate is 0; it should be greater than 0."),
    ({"training.betas": [0.9]}, "training.betas is [0.9]; it has too few items."),
    ({"training.betas": [0.9, 1.0]}, "training.betas.1 is 1.0; it should be less than 1."),
    ({"run.steps": True}, "run.steps is True; it should be a whole number."),
    ({"training.learning_rate": True}, "training.learning_rate is True; it should be a number."),
    ({"training.betas": [False, 0.9]}, "training.betas.0 is False; it should be a number."),
    ({"model": False}, "model.name is False; it should be a text."),
    ({"model": {}}, "model.name is missing; add it to the config or give --model.name VALUE."),
    ({"model": {"name": "x", "lora": {"ranks": 8}}}, "model.lora.ranks is no known field; did you mean model.lora.rank?"),
    ({"model": {"name": "x", "lora": {"rank": 0}}}, "model.lora.rank is 0; it should be at least 1."),
    ({"model": {"name": "x", "lora": True}}, "model.lora is True; it should be a mapping of fields."),
    ({"model": {"name": "x", "lora": {"save": "both"}}}, "model.lora.save is 'both'; it must be one of merged, adapter."),
    ({"model": {"name": "x", "lora": {"targets": ["all-linear", "q_proj"]}}}, "model.lora: targets is [all-linear, q_proj]; "
     "name layers, such as [q_proj, v_proj], or all-linear alone."),
    ({"model": {"name": "x", "lora": {"targets": []}}}, "model.lora: targets is []; name layers, such as [q_proj, v_proj], or "
     "all-linear alone."),
    ({"training.schedule": True}, "training.schedule is True; it must be one of constant, cosine."),
    ({"rollout": 3}, "rollout is 3; it should be a mapping of fields."),
    ({"model": 3}, "model.name is 3; it should be a text."),
    # impossible combinations
    ({"rollout.completions": 1, "objective": {"name": "rft", "prompt_weight": "one_minus_rate"}}, "rollout.completions is 1, "
     "but objective.prompt_weight is one_minus_rate, which weighs a question by its pass rate; set completions to 2 or more, "
     "or prompt_weight to uniform."),
    ({"rollout.completions": 1}, "rollout.completions is 1, but the objective nft compares a question's answers; set it to 2 "
     "or more, or take objective rft."),
    ({"rollout.temperature": 0}, "rollout.temperature is 0, so all answers to a question are the same; set it above 0."),
    ({"rollout.top_p": 0.9}, "rollout.top_p is 0.9 and rollout.top_k is 0, so the sampler's log-probabilities are not the "
     "policy's; set training.old_logprobs to recomputed, or the two to 1 and 0."),
    ({"training.importance_weight_cap": 2}, "training.importance_weight_cap is 2, but with training.old_logprobs recorded π_old "
     "is the sampler's policy and every weight 1; set old_logprobs to recomputed."),
    ({"rollout.engine": "vlm"}, "rollout.engine is 'vlm'; it must be one of local, vllm, vllm_server; did you mean vllm?"),
    ({"rollout.engine": {"name": "vllm", "tensor_paralel": 2}}, "rollout.engine.tensor_paralel is no known field; did "
     "you mean rollout.engine.tensor_parallel?"),
    ({"rollout.engine": "vllm_server"}, "rollout.engine.url is missing; add it to the config or give --rollout.engine.url "
     "VALUE."),
    ({"rollout.temperature": 2.5}, "rollout.temperature is 2.5; it should be at most 2."),
    ({"training.optimizer_steps": 17}, "training.optimizer_steps is 17, more than rollout.questions, 16; a step needs a "
     "question at least."),
    ({"training.warmup_rollouts": 11, "run.steps": 10}, "training.warmup_rollouts is 11, but run.steps, the run's "
     "rollouts, is 10; set it lower."),
    ({"training.warmup_steps": 20}, "training: warmup_steps is 20, but the warm-up is counted in rollouts; give "
     "warmup_rollouts instead (warmup_steps divided by optimizer_steps)."),
    ({"rollout.max_sequences": 7}, "rollout.max_sequences is 7, below rollout.completions, 8; a question's answers are decoded "
     "together, so set it at least that high."),
    ({"rollout.max_sampled_questions": 15}, "rollout.max_sampled_questions is 15, below rollout.questions, 16; set it at least "
     "that high."),
    ({"evaluation.final": {"completions": 4, "temperature": 0}}, "evaluation.final.temperature is 0, so its 4 completions "
     "would be the same; set completions to 1 or temperature above 0."),
    ({"rollout.overlong_buffer": 8}, "rollout.overlong_buffer is 8, but the objective nft learns from verdicts alone, so a "
     "reward by length would change nothing; leave it out, or take an objective with an advantage, such as dapo."),
    ({"objective": "dapo", "rollout.overlong_buffer": 25}, "rollout: overlong_buffer is 25, more than max_new_tokens, 24, of "
     "which it is the last part; set it lower."),
    ({"rollout.max_staleness": 1, "rollout.engine": {"name": "vllm", "tensor_parallel": 2}}, "rollout: max_staleness is 1, but "
     "ranks that share an engine (engine.tensor_parallel is 2) can't ask ahead; set it to 0, or sample with engine vllm_server."),
    ({"rollout.filter": "none", "rollout.truncated_answers": "excluded"}, "rollout: filter is none, which trains on all that "
     "is sampled, but truncated_answers is excluded; set it to wrong, or filter to informative."),
    ({"rollout.filter": "all"}, "rollout.filter is 'all'; it must be one of informative, none."),
    ({"task": {"kind": "dataset", "path": "a.jsonl", "extract": "box"}}, "task.extract: there is no method 'box'; did you "
     "mean 'boxed'? (auto, or some of boxed, answer_is, hashes, bare, last_number)."),
    ({"task": {"kind": "arithmetic", "extract": None}}, "task.extract: there is no method None (auto, or some of boxed, "
     "answer_is, hashes, bare, last_number)."),
    ({"task": {"kind": "reasoning_gym", "name": "chain_sum", "extract": "boxed"}}, "task: prompt asks for an answer between "
     "<answer> tags, which extract doesn't look for; set prompt to boxed or other words of yours, or leave extract out."),
    ({"task": {"kind": "arithmetic", "low": 5, "high": 4}}, "task: low must not exceed high, got low=5 and high=4."),
    ({"task": {"kind": "benchmark", "name": "math", "split": "test"}}, "task: split is for gsm8k alone, math has one split; "
     "leave it out."),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_refused_in_one_sentence(data: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    for name, value in changes.items():
        *parents, last = name.split(".")
        place = data
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    with pytest.raises(ConfigError) as caught:
        parse_config(data)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        (["--run.seed", "3"], "run.seed", 3),
        (["--run.seed=3"], "run.seed", 3),
        (["--training.learning-rate", "1e-5"], "training.learning_rate", 1e-5),
        (["--objective", "grpo"], "objective.name", "grpo"),
        (["--objective.name", "dapo", "--objective.clip_high", "0.3"], "objective.clip_high", 0.3),
        (["--objective.epsilon", "0.5"], "objective.epsilon", 0.5),
        (["--rollout.engine", "vllm"], "rollout.engine.tensor_parallel", 1),
        (["--rollout.engine", "vllm", "--rollout.engine.cache_gib", "2"], "rollout.engine.cache_gib", 2.0),
        (["--model", "other", "--model.lora", "{}"], "model.name", "other"),
        (["--model.lora", "{rank: 4}", "--model", "other"], "model.lora.rank", 4),
        (["--rollout.engine", "vllm"], "training.old_logprobs", "recomputed"),
        (["--rollout.engine", "vllm", "--training.old_logprobs", "recorded"], "training.old_logprobs", "recorded"),
        (["--run.seed", "3"], "training.old_logprobs", "recorded"),
        (["--objective", "{name: grpo, clip: 0.1}"], "objective.clip", 0.1),
        (["--task", "gsm8k:test"], "task.split", "test"),
        (["--task.high", "20"], "task.high", 20),
        (["--run.trackers", "[wandb, tensorboard]"], "run.trackers", ["wandb", "tensorboard"]),
        (["--evaluation.during", "null"], "evaluation.during", None),
        (["--data-dir", "here"], "data_dir", "here"),
    ],
)
def test_overrides(overrides: list[str], field: str, value: Any) -> None:
    found: Any = load_config(ROOT / "configs/demo.yaml", overrides).resolved()
    for part in field.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["run.seed"], "'run.seed' is not an override; write --field.name value, such as --run.seed 1."),
        (["--run.seed"], "--run.seed has no value; write --run.seed value."),
        (["--run.seed", "[1"], "The value of --run.seed, '[1', can't be read; put quotes around it."),
        (["--data_dir", "x", "--data_dir.size", "7"], "data_dir is 'x' and has no field 'size'; write it out as a mapping."),
        (["--model.size", "7"], "model.size is no known field; known are name, lora."),
        (["--run.seeds", "1"], "run.seeds is no known field; did you mean run.seed?"),
        (["--objective", "grpo", "--objective.epsilon", "1"], "objective.epsilon is no known field; known are name, "
         "reduction, clip, clip_high."),
        (["--run.seed", "2024-13-45"], "The value of --run.seed, '2024-13-45', can't be read; put quotes around it."),
        (["--evaluation.task", "gsm8", "--evaluation.task.split", "test"], "evaluation.task: there is no task 'gsm8'; did "
         "you mean 'gsm8k'? (tasks: arithmetic, reasoning_gym:NAME, gsm8k, math, dapo_math_17k, aime24, aime25, amc23, "
         "math500, olympiadbench, minerva_math, a .jsonl or .parquet file, owner/name of a hub data set, or {kind: …})."),
        # Given twice, or undone by a later one: nothing is lost without a word.
        (["--run.seed", "1", "--run.seed=2"], "--run.seed 1 and --run.seed 2 set the same field; give it once."),
        (["--objective", "rft", "--objective.name", "nft"], "--objective rft and --objective.name nft set the same field; "
         "give it once."),
        (["--model", "a", "--model.name", "b"], "--model a and --model.name b set the same field; give it once."),
        (["--task.high", "9", "--task", "gsm8k"], "--task gsm8k would undo --task.high 9 before it; give it first."),
        (["--rollout.engine.tensor_parallel", "2", "--rollout.engine.name", "local"], "--rollout.engine.name local would "
         "undo --rollout.engine.tensor_parallel 2 before it; give it first."),
    ],
)  # fmt: skip
def test_refused_overrides(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs/demo.yaml", overrides)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "The config {path} can't be read: No such file or directory."),
        (b"", "The config {path} is empty; begin with `model: …`."),
        (b"- a", "The config {path} holds list, not fields; begin with `model: …`."),
        (b"run: {}\ntask: gsm8k\nrun: {seed: 1}", "The config {path} is not YAML: found run twice"),
        (b"task: [{kind: a}, {kind: b, kind: c}]", "The config {path} is not YAML: found kind twice"),
        (b"model: !!map x", "The config {path} is not YAML: expected a mapping node"),
        (b"? [a]\n: 1", "The config {path} is not YAML: while constructing a mapping"),
        (b"a: 2024-13-45", "The config {path} is not YAML: month must be in 1..12."),
        (b"a: [", "The config {path} is not YAML: while parsing a flow node"),
        (b"\xff\xfe\x00", "The config {path} can't be read: "),
    ],
)
def test_unreadable_file(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(sentence.format(path=path))
    assert "\n" not in str(caught.value)


def test_a_field_may_override_a_merged_one(tmp_path: Path) -> None:
    """Also where the mapping that does so is merged in turn."""
    data = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    del data["task"]
    final = data.pop("evaluation")["final"]
    rest = yaml.safe_dump(data, default_flow_style=True, width=1000).strip()[1:-1]
    merged = "&m {<<: {kind: arithmetic, low: 1}, low: 2}"
    path = tmp_path / "config.yaml"
    path.write_text(f"{{evaluation: {{task: {merged}, final: {final}}}, task: {{<<: *m, low: 3}}, {rest}}}")
    config = load_config(path)
    assert (config.evaluation.task.low, config.task.low) == (2, 3)  # type: ignore[union-attr]


def test_objective_options_reach_the_loss(data: dict[str, Any]) -> None:
    data["objective"] = {"name": "dapo", "clip_low": 0.1, "clip_high": 0.4}
    assert parse_config(data).objective.options == {"clip_low": 0.1, "clip_high": 0.4}


def test_a_generators_own_parameters_may_be_switches(data: dict[str, Any]) -> None:
    data["task"] = {"kind": "reasoning_gym", "name": "chain_sum", "parameters": {"allow_negation": True}}
    assert parse_config(data).task.parameters == {"allow_negation": True}  # type: ignore[union-attr]


def test_another_model_is_trained_in_the_same_way(tmp_path: Path) -> None:
    path = ROOT / "configs/demo_lora.yaml"
    plain = load_config(ROOT / "configs/demo.yaml", ["--model", "other/model"]).model
    assert (plain.name, plain.lora) == ("other/model", None)
    adapted = load_config(path, ["--model", "other/model", "--model.lora.targets", "q_proj"]).model
    assert adapted.lora is not None
    assert (adapted.name, adapted.lora.rank, adapted.lora.targets) == ("other/model", 16, ("q_proj",))
    assert load_config(path, ["--model.lora", "null"]).model.lora is None
    assert load_config(ROOT / "configs/demo.yaml", ["--model.lora", "{}"]).model == load_config(path).model


def test_a_config_does_not_change(tmp_path: Path) -> None:
    config = parse_config(tiny_config(tmp_path))
    with pytest.raises(ValueError, match="frozen"):
        config.device = "cuda"  # type: ignore[misc]


def test_the_reference_page_is_up_to_date() -> None:
    reference = runpy.run_path(str(ROOT / "docs/config_reference.py"))["reference"]()
    assert (ROOT / "docs/config.md").read_text() == reference, "run: python docs/config_reference.py"
    for name in Config.model_fields:
        assert f"| `{name}` |" in reference
