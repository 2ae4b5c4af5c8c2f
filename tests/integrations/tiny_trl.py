"""A TRL run of a second: a model of a few thousand weights, sums of digits as prompts, a trainer that is watched."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from negaware.integrations.trl import NFTConfig, NFTTrainer
from negaware.objectives import OBJECTIVES
from rounding import Exact, exactly
from tiny_run import tiny_tokenizer, write_tiny_model

HERE = Path(__file__).parent
K = 4
GROUPS = 4
"""In a batch, over two parts of an accumulated step."""
Batch = dict[str, Any]
Reward = Callable[..., list[float | None]]


def questions(terms: int = 4) -> Dataset:
    rows = ["+".join(digits) for digits in product("012", repeat=terms)]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": row}]} for row in rows])


def begins_with_two(completions: list[Any], **others: Any) -> list[float | None]:
    """One answer in ten at first, so that a third of the groups are informative."""
    return [float(completion[0]["content"].startswith("2")) for completion in completions]


def right_of_each(*rates: int) -> Reward:
    """So many right answers in each group, in turn, whatever the model says."""

    def given(completions: list[Any], **others: Any) -> list[float | None]:
        return [float(index % K < rates[index // K % len(rates)]) for index in range(len(completions))]

    return given


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": GROUPS * K // 2,
        "gradient_accumulation_steps": 2,
        "num_generations": K,
        "max_completion_length": 5,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "seed": 3,
    } | changes


def make(
    kind: type[GRPOTrainer],
    config: type[GRPOConfig],
    folder: Path,
    reward: Reward | list[Reward],
    others: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """A trainer; `others` are its arguments, `changes` its config's."""
    if not (folder / "model").exists():
        write_tiny_model(folder / "model")
    return kind(
        **{
            "model": LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
            "args": config(**settings(folder, **changes)),
            "processing_class": tiny_tokenizer(),
            "reward_funcs": reward,
            "train_dataset": questions(),
        }
        | (others or {})
    )


class Watched(NFTTrainer):
    """Keeps what it samples, the batches made of it, each loss it computes, and NFT's by a forward pass in float64."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.samples: list[Batch] = []
        self.batches: list[Batch] = []
        self.parts: list[Batch] = []
        self.losses: list[float] = []
        self.expected: list[Exact] = []
        super().__init__(*args, **kwargs)

    def _sample(self, inputs: list[Batch]) -> Batch:
        self.samples.append(super()._sample(inputs))
        return self.samples[-1]

    def _generate_and_score_completions(self, inputs: list[Batch]) -> Batch:
        self.batches.append(super()._generate_and_score_completions(inputs))
        return self.batches[-1]

    def _compute_loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        self.expected.append(self.expected_loss(model, inputs))
        loss = super()._compute_loss(model, inputs)
        self.losses.append(float(loss.detach()))
        self.parts.append(inputs)
        return loss

    @torch.no_grad()
    def expected_loss(self, model: Any, inputs: Batch) -> Exact:
        """This process's share of a part's loss, from logits and `negaware.objectives`."""
        tokens = inputs["num_items_in_batch"]
        if model.training:
            tokens = tokens * self.args.gradient_accumulation_steps / self.args.steps_per_generation
        double = in_float64(model)
        return exactly(lambda: [token_losses(double, inputs, **self.args.nft_options).sum() / tokens])[0]

    def assert_losses_are_the_objectives(self) -> None:
        for found, exact in zip(self.losses, self.expected, strict=True):
            exact.assert_near(found)


def in_float64(model: Any) -> Any:
    """A copy, without what libraries have put in place of modules' forward passes: that runs the original."""
    double = copy.deepcopy(model).double()
    for module in double.modules():
        module.__dict__.pop("forward", None)
    return double


def token_losses(model: Any, inputs: Batch, **options: Any) -> torch.Tensor:
    """NFT's per-token losses [B, T] under a model's weights; π_old is π_θ where the batch has none."""
    logprobs = plain_logprobs(model, inputs)
    old = inputs.get("old_per_token_logps", logprobs)
    tensors = [inputs[name] for name in ("completion_mask", "correct", "pass_rate")]
    return OBJECTIVES["nft"](logprobs, old, *tensors, **options)


def defined(folder: Path, weights: Mapping[str, torch.Tensor], batches: Sequence[Batch], **options: Any) -> list[Exact]:
    """The gradient by parameter at these weights, flat, and the loss of whole batches, over the tokens of all."""
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model.load_state_dict(weights)
    model.double()
    num_tokens = sum(int(batch["completion_mask"].sum()) for batch in batches)

    def compute() -> list[torch.Tensor]:
        loss = sum(token_losses(model, batch, **options).sum() for batch in batches) / num_tokens
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return [torch.cat([gradient.flatten() for gradient in gradients]), loss]

    return exactly(compute)


def plain_logprobs(model: Any, inputs: Batch) -> torch.Tensor:
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    width = inputs["completion_ids"].shape[1]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -width - 1 : -1]
    return logits.log_softmax(-1).gather(-1, inputs["completion_ids"][..., None])[..., 0]


@dataclass(frozen=True)
class Step:
    """What the optimizer is given, by parameter."""

    weights: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]

    def flat(self) -> torch.Tensor:
        """The gradient, as `defined` has it."""
        return torch.cat([gradient.flatten() for gradient in self.gradients.values()])


def steps_of(trainer: Any) -> list[Step]:
    """Trains, and says at which weights each step was taken, with which gradients."""
    steps: list[Step] = []

    def keep(*others: Any) -> None:
        parameters = [(name, p) for name, p in trainer.model.named_parameters() if p.grad is not None]
        weights = {name: p.detach().clone() for name, p in parameters}
        steps.append(Step(weights, {name: p.grad.clone() for name, p in parameters}))

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    return steps


def nft(folder: Path, reward: Reward | list[Reward], others: dict[str, Any] | None = None, **changes: Any) -> Watched:
    return make(Watched, NFTConfig, folder, reward, others, **changes)


def torchrun(num_processes: int, program: str, *arguments: str) -> None:
    """Runs a program of this folder in so many processes, to its good end."""
    paths = [str(HERE), str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)),
            *(str(HERE / program), *arguments),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
