"""NFT inside the real verl: its registries, its configuration, its reductions, and one update of its own worker."""

import importlib
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # verl warns of each engine that isn't installed
    pytest.importorskip("verl", reason="`make test-verl` has an environment with verl")
    import numpy as np
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.errors import InstantiationException
    from transformers import AutoModelForCausalLM
    from verl import DataProto
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.trainer.ppo.ray_trainer import compute_advantage
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    from negaware.integrations.verl import NFTPolicyLossConfig
    from tiny_run import write_tiny_model
from negaware import libraries
from negaware.objectives import OBJECTIVES, nft_loss
from rounding import Exact, exactly, gamma

pytestmark = pytest.mark.verl
ROOT = Path(__file__).parents[2]
SIZES = (4, 3, 5, 2)  # the last group is all right
RIGHT = (1, 0, 0, 1, 0, 0, 1, 1, 1, 1, 0, 1, 1, 1)
OPTIONS = (
    {},
    {"epsilon": 0.1, "prompt_weight": "uniform"},
    {"epsilon": 0.01, "negative_weight": 0.5, "prompt_weight": "grpo"},
)


def run_file(*overrides):
    with initialize_config_dir(str(ROOT / "configs" / "verl"), version_base=None):
        return compose("nft_7b", overrides=list(overrides))


def actor_config(*overrides, mode="token-mean", **options):
    """verl's actor as its own configuration makes it, with a mini-batch of unknown size."""
    policy_loss = [f"actor_rollout_ref.actor.policy_loss.{name}={value}" for name, value in options.items()]
    config = run_file(f"actor_rollout_ref.actor.loss_agg_mode={mode}", *policy_loss, *overrides)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def verdicts(dtype):
    """Shuffled answers: their question's name, whether they are right, its pass rate."""
    order = torch.randperm(sum(SIZES))
    names = np.repeat([f"question {number}" for number in range(len(SIZES))], SIZES).astype(object)
    correct = torch.tensor(RIGHT, dtype=torch.bool)
    rate = torch.cat([group.to(dtype).mean().expand(len(group)) for group in correct.split(SIZES)])
    return names[order.numpy()], correct[order], rate[order]


def advantages(names, rewards, mask):
    """What verl's own pipeline makes of rewards; they stand on an answer's last token, as in verl."""
    last = mask.cumsum(1).argmax(1, keepdim=True)
    token_level = torch.zeros_like(mask, dtype=rewards.dtype).scatter(1, last, rewards[:, None])
    data = DataProto.from_single_dict({"token_level_rewards": token_level, "response_mask": mask, "uid": names})
    return compute_advantage(data, "nft", config=run_file().algorithm).batch["advantages"]


def answers(dtype):
    """Everything verl's loss gets, beside what ours gets."""
    names, correct, rate = verdicts(dtype)
    lengths = torch.randint(1, 8, (len(correct),))
    mask = (torch.arange(7) < lengths[:, None]).to(dtype)
    new, old = (torch.randn(mask.shape, dtype=dtype) * 0.5 - 2 for _ in range(2))
    given = {
        "old_log_prob": old,
        "log_prob": new.requires_grad_(),
        "advantages": advantages(names, correct.to(dtype), mask),
        "response_mask": mask.bool(),
    }
    learnt = mask.bool() & ((rate > 0) & (rate < 1))[:, None]
    return given, (new, old, learnt, correct, rate)


def with_gradient(loss, leaf):
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_is_ours(options, dtype):
    given, tensors = answers(dtype)
    config = actor_config(**options)
    found, _ = get_policy_loss_fn("nft")(**given, loss_agg_mode=config.loss_agg_mode, config=config)
    (new, old, learnt, correct, rate), num_tokens = tensors, given["response_mask"].sum()
    leaf = new.detach().double().requires_grad_()

    def ours():
        loss = nft_loss(leaf, old.double(), learnt, correct, rate.double(), **options).sum() / num_tokens
        return with_gradient(loss, leaf)

    assert found.item() != 0
    for result, exact in zip(with_gradient(found, given["log_prob"]), exactly(ours), strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(result, exact.value, rtol=1e-12, atol=1e-14)
        exact.assert_near(result)


def test_the_advantage_carries_verdict_and_pass_rate():
    names, correct, rate = verdicts(torch.float64)
    mask = (torch.arange(5) < torch.randint(1, 6, (len(names), 1))).double()
    found = advantages(names, correct.double(), mask)
    torch.testing.assert_close(found, (correct.double() - rate)[:, None] * mask, rtol=0, atol=0)
    torch.testing.assert_close(advantages(names, 2 * correct.double() - 1, mask), found, rtol=0, atol=0)


def test_uninformative_groups_and_padding_teach_nothing():
    given, (*_, learnt, _, _) = answers(torch.float64)
    given["response_mask"][0] = False  # verl pads a batch with rows that have no token
    loss, metrics = get_policy_loss_fn("nft")(**given, config=actor_config())
    _, gradient = with_gradient(loss, given["log_prob"])
    learnt[0] = False
    assert ((gradient != 0) <= learnt).all()
    assert gradient[learnt].ne(0).any()
    assert metrics["actor/nft_informative"] == pytest.approx((learnt.sum() / given["response_mask"].sum()).item())
    assert metrics["actor/nft_informative"] < 1


@pytest.mark.parametrize("reward", [0.9, 2.0, float("nan")])
def test_rewards_that_are_no_verdicts_are_refused(reward):
    rewards, mask = torch.tensor([1.0, reward]), torch.ones(2, 3)
    with pytest.raises(ValueError, match=rf"reward of {reward:g}; it needs verdicts"):
        advantages(np.array(["a", "a"], dtype=object), rewards, mask)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_micro_batches_and_ranks_give_the_whole(mode, ranks):
    """verl adds up micro-batches and averages ranks; both know the mini-batch's size."""
    given, _ = answers(torch.float64)
    whole, _ = get_policy_loss_fn("nft")(**given, loss_agg_mode=mode, config=actor_config(mode=mode))
    config = actor_config(mode=mode)
    config.global_batch_info.update(
        dp_size=ranks, batch_num_tokens=given["response_mask"].sum().item(), global_batch_size=sum(SIZES)
    )
    parts = []
    for rows in torch.randperm(sum(SIZES)).split([5, 1, 6, 2]):
        part = {name: tensor[rows] for name, tensor in given.items()}
        parts.append(get_policy_loss_fn("nft")(**part, loss_agg_mode=mode, config=config)[0])
    torch.testing.assert_close(
        with_gradient(sum(parts) / ranks, given["log_prob"]), with_gradient(whole, given["log_prob"])
    )


def test_rollout_corrections_weigh_tokens():
    given, tensors = answers(torch.float64)
    weights = torch.rand(tensors[0].shape, dtype=torch.float64) + 0.5
    found, _ = get_policy_loss_fn("nft")(**given, rollout_is_weights=weights, config=actor_config())
    torch.testing.assert_close(found, (weights * nft_loss(*tensors)).sum() / given["response_mask"].sum())


def test_a_ratio_of_whole_answers_is_summed():
    given, tensors = answers(torch.float64)
    mode = "seq-mean-token-sum"
    config = actor_config(mode=mode, ratio="sequence")
    found, _ = get_policy_loss_fn("nft")(**given, loss_agg_mode=mode, config=config)
    torch.testing.assert_close(found, nft_loss(*tensors, ratio="sequence").sum() / sum(SIZES))
    with pytest.raises(ValueError, match="loss_agg_mode=seq-mean-token-sum"):
        get_policy_loss_fn("nft")(**given, loss_agg_mode="token-mean", config=config)


@pytest.mark.parametrize("name", ["real", "infonca"])
def test_a_loss_of_whole_groups_is_refused(name, monkeypatch):
    """verl's policy losses aren't told which answers are of one group."""
    given, _ = answers(torch.float64)
    config = actor_config()
    monkeypatch.setattr("negaware.integrations.verl.OBJECTIVE", OBJECTIVES[name])
    with pytest.raises(
        ValueError, match=f"the objective {name} compares all answers of a group, but it wasn't told which"
    ):
        get_policy_loss_fn("nft")(**given, loss_agg_mode=config.loss_agg_mode, config=config)


def test_options_are_checked_with_verls_config():
    with pytest.raises(InstantiationException, match=r"epsilon is -1\.0"):
        actor_config(epsilon=-1.0)
    with pytest.raises(InstantiationException, match=r"prompt_weight.*'half'"):
        actor_config(prompt_weight="half")
    with pytest.raises(InstantiationException, match="unexpected keyword argument 'epsilonn'"):
        actor_config("+actor_rollout_ref.actor.policy_loss.epsilonn=1")


def test_without_options_verls_own_config_will_do():
    own = ["actor_rollout_ref.actor.policy_loss._target_=verl.workers.config.PolicyLossConfig"]
    own += [f"~actor_rollout_ref.actor.policy_loss.{name}" for name in ("epsilon", "negative_weight")]
    own += [f"~actor_rollout_ref.actor.policy_loss.{name}" for name in ("prompt_weight", "ratio")]
    given, tensors = answers(torch.float64)
    config = actor_config(*own)
    assert not isinstance(config.policy_loss, NFTPolicyLossConfig)
    found, _ = get_policy_loss_fn("nft")(**given, config=config)
    torch.testing.assert_close(found, nft_loss(*tensors).sum() / given["response_mask"].sum())


def test_any_run_becomes_one_by_the_documented_options():
    lines = (ROOT / "docs" / "verl.md").read_text().splitlines()
    starts = ("    algorithm.", "    actor_rollout_ref.", "    +actor_rollout_ref.")
    options = [line.split("#")[0].strip() for line in lines if line.startswith(starts)]
    assert len(options) == 6
    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", overrides=["actor_rollout_ref.actor.use_dynamic_bsz=true", *options])
    loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
    assert (loss.loss_mode, loss.prompt_weight, loss.epsilon) == ("nft", "grpo", 1.0)
    assert (config.algorithm.adv_estimator, config.algorithm.filter_groups.enable) == ("nft", True)


def test_the_run_file_is_the_papers_7b_recipe(tmp_path):
    """verl's checks pass, and its numbers are those of our own recipe, whose sources are beside them."""
    config = run_file(f"actor_rollout_ref.model.path={write_tiny_model(tmp_path)}")
    validate_config(config, use_reference_policy=False, use_critic=False)
    recipe = yaml.safe_load((ROOT / "configs" / "paper" / "nft_7b.yaml").read_text())
    rollout, training, objective = recipe["rollout"], recipe["training"], recipe["objective"]
    actor, sampler = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, sampler.n) == (rollout["questions"], rollout["completions"])
    assert config.data.train_batch_size / actor.ppo_mini_batch_size == training["optimizer_steps"]
    assert config.data.max_prompt_length == rollout["max_prompt_tokens"]
    assert config.data.max_response_length == rollout["max_new_tokens"]
    assert (sampler.temperature, sampler.top_p) == (rollout["temperature"], rollout["top_p"])
    names = ("epsilon", "negative_weight", "prompt_weight", "ratio")
    assert [actor.policy_loss[name] for name in names] == [objective[name] for name in names]
    assert (actor.optim.lr, actor.optim.weight_decay) == (training["learning_rate"], training["weight_decay"])
    assert (list(actor.optim.betas), actor.optim.clip_grad) == (training["betas"], training["max_grad_norm"])
    assert (actor.use_kl_loss, config.algorithm.use_kl_in_reward, actor.entropy_coeff) == (False, False, 0)
    assert config.trainer.total_training_steps == recipe["run"]["steps"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("ranks", [1, 2])
def test_verls_worker_takes_our_step(tmp_path, ranks):
    """verl imports what its run file names, and its FSDP worker moves the weights by our gradient."""
    model = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path), attn_implementation="eager")
    names, correct, rate = verdicts(torch.float32)
    lengths = torch.randint(2, 7, (len(correct),))
    mask = torch.arange(6) < lengths[:, None]
    batch = {
        "uid": list(names),
        "prompts": [torch.randint(2, 10, (int(length),)) for length in torch.randint(2, 6, (len(correct),))],
        "answers": [torch.randint(2, 10, (int(length),)) for length in lengths],
        "rewards": torch.zeros(mask.shape).index_put((torch.arange(len(correct)), lengths - 1), correct.float()),
        "old_logprobs": torch.randn(mask.shape) * 0.3 - 2.3,
        "rollout_is_weights": (torch.rand(mask.shape) + 0.5) * mask,
        "overrides": [
            f"actor_rollout_ref.model.path={tmp_path}",
            "actor_rollout_ref.model.use_remove_padding=false",
            "actor_rollout_ref.model.enable_gradient_checkpointing=false",
            "+actor_rollout_ref.model.override_config.attn_implementation=eager",
            "+actor_rollout_ref.actor.fsdp_config.mixed_precision={param_dtype: fp32}",
            "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=24",  # several micro-batches
            "actor_rollout_ref.actor.optim={optimizer: SGD, lr: 10, weight_decay: 0, clip_grad: 1000}",
            "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        ],
    }
    torch.save(batch, tmp_path / "batch.pt")
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(ranks),
        "VERL_PLATFORM": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("verl_update.py")), str(tmp_path)]
    workers = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * ranks, said
    update = torch.load(tmp_path / "update.pt")

    learnt = mask & ((rate > 0) & (rate < 1))[:, None]
    model.double()

    def ours():
        logprobs = torch.zeros(mask.shape)
        for row, (prompt, answer) in enumerate(zip(batch["prompts"], batch["answers"], strict=True)):
            logits = model(torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
            logprobs[row, : len(answer)] = logits.log_softmax(-1).gather(1, answer[:, None])[:, 0]
        loss = nft_loss(logprobs, batch["old_logprobs"].double(), learnt, correct, rate.double())
        loss = (loss * batch["rollout_is_weights"]).sum() / mask.sum()
        return [loss, *torch.autograd.grad(loss, list(model.parameters()))]

    loss, *gradients = exactly(ours)
    assert update["found"] == "negaware.integrations.verl"
    loss.assert_near(update["metrics"]["actor/pg_loss"])
    for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
        moved, step = update["weights"][name].double() - weight.detach(), -10 * gradient.value
        rounded = gamma(2) * (weight.detach().abs() + step.abs()).norm()  # of what is added and of the sum
        Exact(step, 10 * gradient.error + float(rounded)).assert_near(moved)
        assert moved.abs().max() > 1e-4


def test_another_version_says_which_to_install(monkeypatch):
    monkeypatch.setattr(libraries, "version", lambda name: "0.9.2")
    monkeypatch.delitem(sys.modules, "negaware.integrations.verl")
    with pytest.raises(ImportError, match=r"verl that is installed is version 0.9.2; .* with verl>=0.9.1,<0.9.2"):
        importlib.import_module("negaware.integrations.verl")
