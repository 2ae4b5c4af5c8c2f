"""NFT in the real TRL: what it minimises, what it is trained on, and that TRL's own features go on working."""

import copy
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig
from tiny_trl import (
    GROUPS,
    Batch,
    K,
    Reward,
    begins_with_two,
    defined,
    in_float64,
    make,
    nft,
    plain_logprobs,
    questions,
    right_of_each,
    steps_of,
    token_losses,
)
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from negaware.integrations.trl import NFTConfig, NFTTrainer, _joined
from negaware.objectives import OBJECTIVES
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion, Group, Problem, Verdict
from rounding import Exact, exactly, gamma
from tiny_models import network
from tiny_run import tiny_tokenizer

# TRL's own uses of transformers' old names.
pytestmark = pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning")


def groups_of(batch: Batch) -> list[Batch]:
    rows = {name: value.split(K) for name, value in batch.items() if name != "num_items_in_batch"}
    return [dict(zip(rows, parts, strict=True)) for parts in zip(*rows.values(), strict=True)]


# --- what it minimises ---


def as_ours(group: Batch) -> Group:
    """What TRL trained on, as negaware's own trainer takes it."""
    prompt = tuple(group["prompt_ids"][0][group["prompt_mask"][0].bool()].tolist())
    completions = []
    for row, kept in enumerate(group["completion_mask"].bool()):
        ids, old = group["completion_ids"][row][kept], group["old_per_token_logps"][row][kept]
        completions.append(Completion.drawn(tuple(ids.tolist()), tuple(old.tolist()), "length", 0, row))
    verdicts = tuple(Verdict(bool(right), "correct" if right else "wrong") for right in group["correct"])
    return Group(Problem(str(prompt), "", ""), prompt, tuple(completions), ("",) * K, verdicts)


@pytest.mark.parametrize("prompt_weight", ["uniform", "one_minus_rate", "grpo"])
def test_loss_and_gradient_are_those_of_our_trainer(tmp_path: Path, prompt_weight: str) -> None:
    """The second step on a batch of groups of all pass rates, in two parts: π_θ isn't π_old any more."""
    options = {"prompt_weight": prompt_weight, "negative_weight": 0.7}
    trainer = nft(tmp_path, right_of_each(1, 2, 3), num_iterations=2, max_steps=2, learning_rate=1e-2, **options)
    _, second = steps_of(trainer)
    (batch,) = trainer.batches
    model = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    model.load_state_dict(second.weights)
    training = TrainingOptions(compute_dtype="float32", old_logprobs="recorded", optimizer_steps=1, learning_rate=1e-9)
    ours = Trainer(network(model), LossSettings(OBJECTIVES["nft"], options, 1.0, 5), training, num_steps=1)
    metrics = ours.step([as_ours(group) for group in groups_of(batch)], seed=0)
    gradient, loss = defined(tmp_path, second.weights, [batch], **options)
    assert abs(loss.value) > 1e-3
    gradient.assert_near(second.flat())
    loss.assert_near(sum(trainer.losses[2:]))
    loss.assert_near(metrics["train/loss"])
    assert abs(metrics["train/grad_norm"] - gradient.value.norm()) < gradient.error


def test_off_policy_losses_are_those_of_the_objective(tmp_path: Path) -> None:
    """A batch of twice the size is learnt from in two steps: at the second, π_θ isn't π_old any more."""
    trainer = nft(tmp_path, right_of_each(1, 2, 3), steps_per_generation=4, max_steps=4, learning_rate=1e-2)
    trainer.train()
    assert len(trainer.losses) == 8
    trainer.assert_losses_are_the_objectives()
    shares = [entry["nft/share_at_epsilon"] for entry in trainer.state.log_history[:4]]
    assert shares[0] == shares[2] == 0
    assert min(shares[1], shares[3]) > 0.1
    assert not [name for name in trainer.state.log_history[0] if name.startswith("clip_ratio")]


def test_a_loss_of_whole_groups_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL shuffles a batch's answers and doesn't tell which are of one group."""
    monkeypatch.setattr("negaware.integrations.trl.OBJECTIVE", OBJECTIVES["real"])
    monkeypatch.setattr(NFTConfig, "nft_options", {})
    trainer = nft(tmp_path, right_of_each(1, 2, 3), max_steps=1)
    with pytest.raises(
        ValueError, match="the objective real compares all answers of a group, but it wasn't told which"
    ):
        trainer.train()


@pytest.mark.parametrize("right", [1, 2, 3])
def test_grpos_gradient_is_recovered_on_policy(tmp_path: Path, right: int) -> None:
    """TRL divides by the sample's standard deviation and 1e-4 more, NFT's weights by the population's."""
    exact = exact_gradient(tmp_path, right_of_each(right), prompt_weight="grpo")
    (theirs,) = steps_of(make(GRPOTrainer, GRPOConfig, tmp_path, right_of_each(right)))
    population = (right / K * (1 - right / K)) ** 0.5
    sample = population * (K / (K - 1)) ** 0.5
    exact.assert_near(theirs.flat() * ((sample + 1e-4) / population))


def test_dr_grpos_advantages_give_the_default_weights_gradient(tmp_path: Path) -> None:
    """A = r − mean, groups of all pass rates in one batch."""
    exact = exact_gradient(tmp_path, right_of_each(1, 2, 3))
    (theirs,) = steps_of(make(GRPOTrainer, GRPOConfig, tmp_path, right_of_each(1, 2, 3), scale_rewards="none"))
    exact.assert_near(theirs.flat())


def exact_gradient(tmp_path: Path, reward: Reward, **options: Any) -> Exact:
    """NFT's gradient by definition; TRL's NFT has it."""
    trainer = nft(tmp_path, reward, **options)
    (step,) = steps_of(trainer)
    gradient, _ = defined(tmp_path, step.weights, trainer.batches, **options)
    assert gradient.value.norm() > 1e-2
    gradient.assert_near(step.flat())
    return gradient


def test_kl_is_added(tmp_path: Path) -> None:
    beta = 0.5
    trainer = nft(tmp_path, right_of_each(1, 2), beta=beta, max_steps=2, learning_rate=1e-2)
    _, second = steps_of(trainer)
    reference = LlamaForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float64)
    policy = copy.deepcopy(reference)
    policy.load_state_dict(second.weights)
    batch = trainer.batches[1]

    def compute() -> list[torch.Tensor]:
        difference = plain_logprobs(reference, batch) - plain_logprobs(policy, batch)
        added = beta * (difference.exp() - difference - 1) * batch["completion_mask"]
        terms = [added, token_losses(policy, batch)]
        return [sum(each.sum() for each in terms) / batch["num_items_in_batch"], added.sum()]

    with torch.no_grad():
        both, added = exactly(compute)
    both.assert_near(sum(trainer.losses[2:]))
    assert added.value > 1e-3 * batch["num_items_in_batch"]


def test_answers_of_vllm_have_their_importance_weights(tmp_path: Path) -> None:
    trainer = nft(tmp_path, right_of_each(1, 2), num_iterations=2, max_steps=2, learning_rate=1e-2)
    trainer.train()
    part, plain = trainer.parts[0], trainer.expected_loss(trainer.model, trainer.parts[0])
    for shape in ((len(part["correct"]), 1), tuple(part["completion_ids"].shape)):
        weighted = part | {"importance_sampling_ratio": torch.full(shape, 0.25)}
        Exact(plain.value / 4, plain.error / 4).assert_near(trainer._compute_loss(trainer.model, weighted))
    assert abs(plain.value) > 1e-3


@pytest.mark.slow
def test_a_run_learns(tmp_path: Path) -> None:
    """To begin with the question's first digit: one answer in eight at first, one in three for a constant digit."""

    def copies(prompts: list[Any], completions: list[Any], **others: Any) -> list[float | None]:
        pairs = zip(prompts, completions, strict=True)
        return [float(done[0]["content"].startswith(asked[0]["content"][0])) for asked, done in pairs]

    trainer = make(
        NFTTrainer,
        NFTConfig,
        tmp_path,
        copies,
        {"eval_dataset": questions().select(range(80))},
        max_steps=150,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        num_generations=8,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=160,
        gradient_accumulation_steps=1,
        num_iterations=2,
        max_completion_length=2,
        logging_steps=1000,
    )
    assert trainer.evaluate()["eval_reward"] < 0.2
    trainer.train()
    assert trainer.evaluate()["eval_reward"] > 0.8  # seeds 0, 1, 2: 1.00, 0.97, 1.00


# --- what it is trained on ---


def test_batches_are_refilled_with_informative_groups(tmp_path: Path) -> None:
    """Real answers under a real verdict: one group in three is informative."""
    asked = []

    rights, lengths = [], []

    def counted(completions: list[Any], completion_ids: list[list[int]], **others: Any) -> list[float | None]:
        lengths.append([len(ids) for ids in completion_ids])
        asked.append(len(completions) // K)
        rights.append(begins_with_two(completions))
        return rights[-1]

    trainer = nft(tmp_path, counted, max_steps=3)
    trainer.train()
    assert len(trainer.batches) == 3
    tokenizer = tiny_tokenizer()
    for batch in trainer.batches:
        groups = groups_of(batch)
        assert len(groups) == GROUPS
        for group in groups:
            assert len(set(map(tuple, group["prompt_ids"].tolist()))) == 1
            texts = tokenizer.batch_decode(group["completion_ids"], skip_special_tokens=True)
            assert group["correct"].tolist() == [text.startswith("2") for text in texts]
            assert 0 < group["correct"].float().mean() < 1
            assert group["pass_rate"].tolist() == [group["correct"].float().mean()] * K
            assert group["completion_mask"].sum(1).min() > 0
        assert batch["num_items_in_batch"] == batch["completion_mask"].sum()
    logs = trainer.state.log_history[:3]
    assert sum(log["refill/questions_asked"] for log in logs) == sum(asked) > 3 * GROUPS
    assert max(asked) <= GROUPS
    assert len(set(asked)) > 1, "or calls would count alike"
    calls = list(zip(asked, rights, strict=True))
    for log in logs:  # over all questions of the step, however many a call asked
        of_step, widths = [], []
        while len(of_step) < K * log["refill/questions_asked"]:
            of_step += calls.pop(0)[1]
            widths.append(lengths.pop(0))
        assert log["reward"] == log["rewards/counted/mean"] == pytest.approx(sum(of_step) / len(of_step), rel=gamma(2))
        assert log["completions/min_length"] == min(map(min, widths))
        assert log["completions/max_length"] == max(map(max, widths))
    assert min(log["refill/informative_share"] for log in logs) > 0


@pytest.mark.parametrize(
    ("name", "values", "joined"),
    [
        ("reward", [0.5, 0.0], 0.4),
        ("rewards/code/mean", [0.5, nan], 0.5),
        ("rewards/max_words/mean", [1.0, 0.0], 0.8),
        ("completions/min_length", [3.0, 2.0], 2.0),
        ("completions/min_terminated_length", [3.0, 0.0], 3.0),
        ("completions/max_terminated_length", [0.0, 0.0], 0.0),
        ("sampling/importance_sampling_ratio/max", [1.5, 2.0], 2.0),
    ],
)
def test_a_metric_of_two_calls(name: str, values: list[float], joined: float) -> None:
    assert _joined(name, values, [16, 4]) == pytest.approx(joined)
    assert isnan(_joined(name, [nan, nan], [16, 4]))


def test_refills_keep_what_answers_have(tmp_path: Path) -> None:
    """Old and reference log-probabilities of groups from several calls, padded to the longest, are still theirs."""
    mixed = {"train_dataset": concatenate_datasets([questions(3), questions(4).select(range(27))])}
    trainer = nft(tmp_path, begins_with_two, mixed, beta=0.1, num_iterations=2, max_steps=8, max_completion_length=16)
    trainer.train()
    for name in ("prompt_ids", "completion_ids"):
        assert len({sample[name].shape[1] for sample in trainer.samples}) > 1
    assert trainer.state.log_history[0]["refill/questions_asked"] > GROUPS
    model = in_float64(trainer.model)  # which a learning rate of 0 has left as it was
    with torch.no_grad():
        for part in trainer.parts:
            mask = part["completion_mask"].bool()
            (exact,) = exactly(lambda part=part, mask=mask: [plain_logprobs(model, part)[mask]])
            for name in ("old_per_token_logps", "ref_per_token_logps"):
                exact.assert_near(part[name][mask])
    trainer.assert_losses_are_the_objectives()


def test_without_refills_uninformative_groups_are_left_out(tmp_path: Path) -> None:
    trainer = nft(tmp_path, right_of_each(1, 0, 2, K), max_refills=0, num_iterations=2)
    trainer.train()
    (batch,) = trainer.batches
    first, none, second, every = groups_of(batch)
    assert int(none["completion_mask"].sum() + every["completion_mask"].sum()) == 0
    # There TRL's log π_θ is 0, and so GRPO's ratio 1, however unlikely an answer is: an infinite one makes NaN of all.
    assert not none["old_per_token_logps"].any()
    assert first["old_per_token_logps"].any()
    assert first["completion_mask"].sum() + second["completion_mask"].sum() == batch["num_items_in_batch"]
    trainer.assert_losses_are_the_objectives()


def test_questions_that_teach_nothing_end_after_max_refills(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = nft(tmp_path, right_of_each(0), max_refills=2)
    (step,) = steps_of(trainer)
    assert trainer.state.log_history[0]["refill/questions_asked"] == 3 * GROUPS
    assert all(not gradient.any() for gradient in step.gradients.values())
    assert f"0 of this batch's {GROUPS} questions have right and wrong answers, after {3 * GROUPS} were" in caplog.text


def test_a_batch_that_cannot_be_filled_learns_from_what_it_has(tmp_path: Path) -> None:
    calls = []

    def first_only(completions: list[Any], **others: Any) -> list[float | None]:
        calls.append(len(completions))
        return [float(len(calls) == 1 and index == 0) for index in range(len(completions))]

    trainer = nft(tmp_path, first_only, max_refills=2)
    trainer.train()
    (batch,) = trainer.batches
    informative, *others = groups_of(batch)
    assert informative["pass_rate"].tolist() == [1 / K] * K
    assert len(others) == GROUPS - 1
    assert sum(int(group["completion_mask"].sum()) for group in others) == 0


def test_answers_without_a_verdict_are_left_out(tmp_path: Path) -> None:
    def partly(completions: list[Any], **others: Any) -> list[float | None]:
        return [[1.0, 0.0, None, 0.0][index % K] for index in range(len(completions))]

    trainer = nft(tmp_path, partly)
    trainer.train()
    (batch,) = trainer.batches
    assert batch["pass_rate"].tolist() == pytest.approx([1 / 3] * GROUPS * K, rel=gamma(2))
    lengths = batch["completion_mask"].sum(1).view(GROUPS, K)
    assert (lengths > 0).tolist() == [[True, True, False, True]] * GROUPS


def test_truncated_answers_can_be_left_out(tmp_path: Path) -> None:
    """They leave the pass rate too, and a group needs both verdicts among the others."""
    trainer = nft(tmp_path, begins_with_two, mask_truncated_completions=True)
    trainer.train()
    (batch,) = trainer.batches
    assert batch["completion_ids"].shape[1] == 5
    for group in groups_of(batch):
        ended = group["completion_ids"][:, -1] <= 1  # TRL: ends with <eos> or <pad>
        taught = ended & (group["pass_rate"] > 0) & (group["pass_rate"] < 1)
        assert (group["completion_mask"].sum(1) > 0).tolist() == taught.tolist()
        if ended.any():
            assert group["pass_rate"][0] == pytest.approx(float(group["correct"][ended].float().mean()))


def test_several_rewards_make_one_verdict(tmp_path: Path) -> None:
    """Those of weight 0 are watched only, and make no verdict where there is none."""

    def long(completions: list[Any], **others: Any) -> list[float | None]:
        return [3.7] * len(completions)

    def partly(completions: list[Any], **others: Any) -> list[float | None]:
        return [[1.0, 0.0, None, 0.0][index % K] for index in range(len(completions))]

    trainer = nft(tmp_path, [partly, long], reward_weights=[1.0, 0.0])
    trainer.train()
    assert trainer.batches[0]["pass_rate"].tolist() == pytest.approx([1 / 3] * GROUPS * K, rel=gamma(2))
    assert trainer.state.log_history[0]["rewards/long/mean"] == pytest.approx(3.7, rel=gamma(GROUPS * K + 2))
    with pytest.raises(ValueError, match=r"rewards add up to 4.69\d*, but NFT needs verdicts"):
        nft(tmp_path, [partly, long]).train()


# --- TRL's own features ---


def test_adapters_are_trained(tmp_path: Path) -> None:
    adapters = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}
    trainer = nft(tmp_path, right_of_each(1, 2), adapters, beta=0.1, max_steps=2, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    for found, exact in zip(trainer.losses[:2], trainer.expected[:2], strict=True):
        exact.assert_near(found)


def test_evaluation_has_the_same_loss(tmp_path: Path) -> None:
    trainer = nft(
        tmp_path,
        right_of_each(1, 2, 3),
        {"eval_dataset": questions().select(range(4))},
        per_device_eval_batch_size=2 * K,
    )
    metrics = trainer.evaluate()
    assert len(trainer.batches) == 2
    trainer.assert_losses_are_the_objectives()
    assert metrics["eval_loss"] == pytest.approx(sum(trainer.losses) / 2, rel=gamma(4 * K), abs=0)
    assert "eval_refill/questions_asked" not in metrics


def test_a_resumed_run_equals_a_straight_one(tmp_path: Path) -> None:
    """Refilled batches included."""
    changes = {"learning_rate": 1e-2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    straight = nft(tmp_path, begins_with_two, **changes)
    straight.train()
    resumed = nft(tmp_path, begins_with_two, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-2"))
    assert len(resumed.batches) == 2
    for ours, theirs in zip(resumed.batches, straight.batches[2:], strict=True):
        assert torch.equal(ours["prompt_ids"], theirs["prompt_ids"])
        assert torch.equal(ours["completion_ids"], theirs["completion_ids"])
    assert resumed.losses == straight.losses[4:]
    assert straight.state.log_history[2]["refill/questions_asked"] > GROUPS
    for ours, theirs in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert "2505.18116" in (tmp_path / "out/README.md").read_text()
