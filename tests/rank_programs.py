"""What tests/test_ranks.py runs on several ranks: each function is called on all of them, with a list of texts."""

from __future__ import annotations

import os
import random
import socket
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from negaware.models.load import compute_dtype, load_policy, load_sharded_policy
from negaware.models.lora import merged_weights
from negaware.models.options import LoraOptions
from negaware.models.parallel import named_weights
from negaware.models.save import save_model
from negaware.objectives import OBJECTIVES
from negaware.ranks import RankLostError, Ranks, joined_ranks
from negaware.rollout.local import LocalEngine
from negaware.training.checkpoint import CheckpointError, list_checkpoints, save_checkpoint
from negaware.training.optimizer import MasterOptimizer
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, NonFiniteLossError, Trainer
from rank_rollouts import sampled_in_turn
from rounding import Exact, exact_logprobs, gamma
from tiny_models import ALPHA, LORA, RANK, adapters, llama
from training.definition import defined
from training.made_groups import off_policy, prompts_and_tokens, sampled_groups


@contextmanager
def steps_seen(see: Callable[[MasterOptimizer, Tensor], Tensor]) -> Iterator[None]:
    """`see` meets the optimizer and the gradient's norm before each step in the block, and says the norm for it."""
    original = MasterOptimizer.step
    MasterOptimizer.step = lambda self, norm: original(self, see(self, norm))  # type: ignore[method-assign]
    try:
        yield
    finally:
        MasterOptimizer.step = original  # type: ignore[method-assign]


def whole_gradients(optimizer: MasterOptimizer) -> dict[str, Tensor]:
    """The gradient by name, of all shards."""
    gradients = {name: master.grad for name, master in optimizer.masters.items()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g.clone() for name, g in gradients.items()}


def train_whole_and_shared(arguments: Sequence[str]) -> None:
    """Gradients, metrics and weights after two optimizer steps equal those of a trainer that isn't sharded."""
    folder, dtype, activations, offload, num_groups, objective, ratio, trained = arguments
    lora = LORA if trained == "adapters" else None
    recomputes = dtype == "bfloat16" and not OBJECTIVES[objective].sees_groups
    options = TrainingOptions(
        compute_dtype=dtype,  # type: ignore[arg-type]
        activations=activations,  # type: ignore[arg-type]
        offload=offload,  # type: ignore[arg-type]
        learning_rate=1e-3,
        micro_batch_tokens=60,
        old_logprobs="recomputed" if recomputes else "recorded",
        importance_weight_cap=2.0 if recomputes else None,
    )
    loss = LossSettings(OBJECTIVES[objective], {"ratio": ratio} if objective == "nft" else {}, 1.0, 14)
    # π_old computed again and importance weights are rounded too, each as the log-probabilities that they come from.
    times = 3 if recomputes else 1
    with joined_ranks() as ranks:
        policy = load_sharded_policy(folder, ranks, "cpu", compute_dtype(dtype), offload == "cpu", lora)
        if lora is not None:
            torch.manual_seed(1)
            for parameter in adapters(policy.model).values():
                torch.nn.init.normal_(parameter, std=0.1)
        whole = {name: parameter.full_tensor() for name, parameter in policy.model.named_parameters()}  # type: ignore[attr-defined]
        shards = sum(parameter.to_local().numel() for parameter in policy.model.parameters())  # type: ignore[attr-defined]
        total = sum(weight.numel() for weight in whole.values())
        assert shards < 1.2 * total / ranks.size
        policy_alone = load_policy(folder, compute_dtype(dtype), lora=lora, trained=True)
        alone = policy_alone.model
        alone.load_state_dict(whole, strict=False)
        groups = sampled_groups(alone, num_groups=int(num_groups))
        if loss.objective.sees_groups:  # or the log-ratios that ranks exchange would be 0 but for rounding
            groups = off_policy(groups)
        questions = list(groups)
        random.Random(0).shuffle(questions)
        num_steps = min(2, len(questions))
        unit = torch.finfo(compute_dtype(dtype)).eps / 2
        of_shards: list[tuple[dict[str, Tensor], Tensor]] = []
        exact: list[tuple[Exact, Exact, Exact]] = []
        defining = loss.options | ({"beta": 0.1} if objective == "infonca" else {})

        def keep(optimizer: MasterOptimizer, norm: Tensor) -> Tensor:
            of_shards.append((whole_gradients(optimizer), norm))
            return norm

        def compare(optimizer: MasterOptimizer, norm: Tensor) -> Tensor:
            """Then takes the shards' gradient and norm, so that weights differ by AdamW's own rounding alone."""
            step, theirs = optimizer.num_steps_done, whole_gradients(optimizer)
            ours, norm_of_shards = of_shards[step]
            assert ours.keys() == theirs.keys()
            if ranks.is_first:
                exact.append(defined(alone, questions[step::num_steps], objective, defining, unit=unit))
                for gradients in (ours, theirs):
                    exact[step][0].assert_near(torch.cat([g.flatten() for g in gradients.values()]), times)
            for name, master in optimizer.masters.items():
                master.grad = ours[name]
            return norm_of_shards

        allowed = exact_logprobs(alone, prompts_and_tokens(groups), unit=unit).mean_difference()
        with steps_seen(keep):
            trainer = Trainer(policy.network, loss, options, 10, ranks)
            metrics = trainer.step(sampled_in_turn(groups, ranks), 0)
        with steps_seen(compare):
            trainer_alone = Trainer(policy_alone.network, loss, options_of_one_process(options), 10)
            for name, master in trainer_alone.optimizer.masters.items():
                master.copy_(whole[name].detach())  # which the model may have had in bfloat16
            trainer_alone.optimizer.sync_model()
            expected = trainer_alone.step(groups, 0)
        assert len(of_shards) == trainer_alone.optimizer.num_steps_done == num_steps
        if ranks.is_first:
            assert_same_step(metrics, expected, exact, times, allowed, dtype)
        assert len({tuple(sorted(each.items())) for each in ranks.gather(metrics)}) == 1
        # Some 20 operations make a step, which is no longer than the learning rate and is taken from a decayed weight.
        for name, master in trainer_alone.optimizer.masters.items():
            of_step = options.learning_rate * gamma(20) + gamma(3) * master.abs()
            found = trainer.optimizer.masters[name].full_tensor()  # type: ignore[attr-defined]
            assert ((found - master).abs() <= num_steps * of_step).all(), name
            master.copy_(found)
        if dtype == "float32":
            largest = max((float(w.abs().max()) for w in adapters(alone).values()), default=0.0)
            error = gamma(RANK + 3) * 2 * ALPHA * largest**2  # of a weight and the sum of RANK products
            expected_weights = dict(merged_weights(alone))
            for name, weight in named_weights(policy.model, torch.float32):
                assert (
                    (weight - expected_weights[name]).abs() <= error + gamma(1) * weight.abs() * bool(lora)
                ).all(), name


def assert_same_step(
    metrics: dict[str, float],
    expected: dict[str, float],
    exact: Sequence[tuple[Exact, Exact, Exact]],
    times: float,
    allowed: float,
    dtype: str,
) -> None:
    """A step's metrics are another's but for rounding, where it is `allowed` to a log-probability."""
    assert metrics.keys() == expected.keys()
    _, losses, norms = zip(*exact, strict=True)
    for name, found in metrics.items():
        kind, other = name.removeprefix("train/"), expected[name]
        if kind in ("sampler_difference", "share_at_epsilon"):  # where R is 1 but for rounding
            continue
        if kind in ("loss", "grad_norm"):
            of_steps = losses if kind == "loss" else norms
            mean = sum(float(each.value) for each in of_steps) / len(exact)
            error = sum(each.error for each in of_steps) / len(exact)
            Exact(torch.tensor(mean, dtype=torch.float64), error).assert_near(found, times)
        elif kind == "entropy":  # Σ|∂H/∂ log p| ≤ 2H
            assert found == pytest.approx(other, rel=2 * allowed), (name, found, other)
        elif "weight" in kind:  # its logarithm changes 6 times as much as that of R: r̂ is at most 5/6
            assert found == pytest.approx(other, rel=6 * allowed + gamma(metrics["train/num_tokens"])), (name, found)
        elif not kind.startswith("share_") or dtype == "float32":  # which side of a bound a ratio lies on is rounding
            assert found == pytest.approx(other, rel=1e-12), (name, found, other)


def options_of_one_process(options: TrainingOptions) -> TrainingOptions:
    """The same options for one process."""
    return options.model_copy(update={"offload": "none", "activations": "kept"})


def nan_on_one_rank(arguments: Sequence[str]) -> None:
    """A loss that isn't finite in one rank's share stops all of them, and leaves the weights as they were."""
    with joined_ranks() as ranks:
        policy = load_sharded_policy(arguments[0], ranks, "cpu", torch.float32, False)
        before = {name: weight.clone() for name, weight in named_weights(policy.model, torch.float32)}
        groups = sampled_groups(llama(0), num_groups=4)
        (first, *others) = groups[0].completions
        broken = replace(first, logprobs=first.logprobs * np.float32("nan"))
        groups[0] = replace(groups[0], completions=(broken, *others))
        options = TrainingOptions(compute_dtype="float32", optimizer_steps=1, micro_batch_tokens=30)
        trainer = Trainer(policy.network, LossSettings(OBJECTIVES["nft"], {}, 1.0, 14), options, 10, ranks)
        try:
            trainer.step(groups, 0)
        except NonFiniteLossError as error:
            said = str(error)
        assert ranks.gather(said) == [said] * ranks.size
        for name, weight in named_weights(policy.model, torch.float32):
            assert torch.equal(weight, before[name])


def save_and_hand_over_one_by_one(arguments: Sequence[str]) -> None:
    """While the finished model is written or handed over, no rank holds a second whole weight."""
    model_folder, folder = arguments
    with joined_ranks() as ranks:
        policy = load_sharded_policy(model_folder, ranks, "cpu", torch.bfloat16, False)
        engine = LocalEngine(load_policy(model_folder, torch.bfloat16).network)
        original, made = DTensor.full_tensor, []

        def full_tensor(self: DTensor) -> Tensor:
            assert all(reference() is None for reference in made), "an earlier weight is still held"
            whole = original(self)
            made.append(weakref.ref(whole))
            return whole

        DTensor.full_tensor = full_tensor  # type: ignore[method-assign, assignment]
        save_model(policy, Path(folder), torch.bfloat16, ranks)
        engine.load_weights(named_weights(policy.model, torch.bfloat16), 1)
        assert len(made) == 2 * len(list(policy.model.parameters()))
        _stay(ranks)


def merge_adapters_of_a_real_width(arguments: Sequence[str]) -> None:
    """Wide products' layouts are torch's choice unless they are asked for; narrow ones come out right by themselves."""
    (folder,) = arguments
    lora = LoraOptions(save="adapter")
    with joined_ranks() as ranks:
        policy = load_sharded_policy(folder, ranks, "cpu", torch.bfloat16, False, lora)
        torch.manual_seed(1)
        for parameter in adapters(policy.model).values():
            torch.nn.init.normal_(parameter, std=0.1)
        whole = {name: parameter.full_tensor() for name, parameter in policy.model.named_parameters()}  # type: ignore[attr-defined]
        alone = load_policy(folder, torch.bfloat16, lora=lora).model
        alone.load_state_dict(whole, strict=False)
        expected = dict(merged_weights(alone))
        found = dict(named_weights(policy.model, torch.bfloat16))
        assert found.keys() == expected.keys()
        for name, weight in found.items():
            assert torch.equal(weight, expected[name]), name
        save_model(policy, Path(folder, "adapter"), torch.bfloat16, ranks)
        if ranks.is_first:
            saved = load_file(Path(folder, "adapter", "adapter_model.safetensors"))
            assert len(saved) == len(adapters(alone))
            for name, weight in adapters(alone).items():
                key = f"base_model.model.{name.replace('.default', '')}"
                assert torch.equal(saved[key], weight.to(torch.bfloat16)), key
                assert saved[key].dtype == torch.bfloat16
        _stay(ranks)


def write_where_others_do_not_look(arguments: Sequence[str]) -> None:
    """Each rank has a folder of its own under the same name, as if the disk were each machine's."""
    with joined_ranks() as ranks:
        shared, own = Path(arguments[0]), Path(arguments[0], str(ranks.rank))
        own.mkdir()
        ranks.require_shared(shared)
        ranks.meet()  # the first rank tidies up after the others have looked
        assert not list(shared.glob(".*"))
        with pytest.raises(ValueError, match=r"rank 1 \(on .*\) doesn't see what the first rank writes in "):
            ranks.require_shared(own)
        weight = distribute_tensor(torch.arange(8.0), init_device_mesh("cpu", (ranks.size,)), [Shard(0)])
        with pytest.raises(CheckpointError, match=r"can't be written .*No such file"):
            save_checkpoint(own, 1, {"weight": weight}, {}, 2, ranks)
        assert list_checkpoints(own) == []
        _stay(ranks)


def leave_alone(arguments: Sequence[str]) -> None:
    """All come to one place in time; to another, one of them doesn't."""
    with joined_ranks() as ranks:
        assert ranks.all_reach("the end", 20)
        if ranks.rank != 1:
            assert not ranks.all_reach("nowhere", 0.5)
        assert ranks.from_first(lambda: ranks.rank) == 0
        assert ranks.sums({"one": 1.0, f"own {ranks.rank}": 2.0}) == {
            "one": float(ranks.size),
            **{f"own {rank}": 2.0 for rank in range(ranks.size)},
        }
        assert ranks.dead() == []
        _stay(ranks)


def lose_one_on_another_machine(arguments: Sequence[str]) -> None:
    """The last of three ranks, which seems to be on a machine of its own, leaves without a word."""
    place = "node1" if os.environ["RANK"] == "2" else "node0"
    socket.gethostname = lambda: place
    said = ""
    try:
        with joined_ranks() as ranks:
            ranks.meet()
            if ranks.rank == 2:
                os._exit(0)
            ranks.meet()
    except RankLostError as error:
        said = str(error)
    assert said.startswith("a rank on node1 has died, so the others can't go on")


def _stay(ranks: Ranks) -> None:
    """The first rank holds the store, so it leaves last."""
    ranks.meet()
