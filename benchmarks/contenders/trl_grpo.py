"""TRL's GRPOTrainer on the same questions, with the settings that were found best for it on a CPU.

It owns the loop, so a callback answers the driver whenever a rollout's optimizer steps are done, and waits there.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from channel import Channel, Measurement
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from negaware.tasks.options import BOXED_PROMPT
from negaware.tasks.task import Task
from negaware.types import Problem
from negaware.verifiers.math import MathVerifier

MODEL_DTYPE = torch.float32  # master weights; bfloat16 compute is by autocast, TRL's way to have both
SETTINGS: dict[str, Any] = {
    "bf16": True,
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
    "beta": 0.0,
    "logging_strategy": "no",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "dataloader_num_workers": 0,
    "dataloader_pin_memory": False,
    "shuffle_dataset": False,
    "seed": 0,
}
BATCH_SIZE = {24: 16, 128: 8}
"""Answers in one forward and backward, by the limit on their tokens."""


class Reward:
    """The task's verifier as a reward function; it counts what was sampled on the way."""

    __name__ = "verifier"

    def __init__(self, stop_token_ids: list[int]) -> None:
        self.task = Task("benchmark", [], BOXED_PROMPT, MathVerifier(extract=("last_number",)))
        self.stop_token_ids = set(stop_token_ids)
        self.tokens, self.right, self.answers, self.seconds = 0, 0.0, 0, 0.0

    def __call__(self, completions: list, completion_ids: list, answer: list[str], **others: object) -> list[float]:
        """1 for a right answer that came to its end, else 0."""
        start = time.perf_counter()
        ends = ["stop" if ids[-1] in self.stop_token_ids else "length" for ids in completion_ids]
        problems = [Problem("", "", gold) for gold in answer]
        verdicts = self.task.grade([messages[0]["content"] for messages in completions], problems, ends)
        rewards = [float(verdict.correct) for verdict in verdicts]
        self.tokens, self.answers = sum(map(len, completion_ids)), len(rewards)
        self.right, self.seconds = sum(rewards) / len(rewards), time.perf_counter() - start
        return rewards


class Alternate(TrainerCallback):
    """Runs one rollout a command; the first, before the worker is ready, warms up."""

    def __init__(self, channel: Channel, reward: Reward, versions: dict[str, str], rollout_steps: int) -> None:
        self.channel, self.reward, self.versions, self.rollout_steps = channel, reward, versions, rollout_steps
        self.warm, self.start = False, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> Any:
        """After each optimizer step: at a rollout's last, answers and waits for the next command."""
        if state.global_step % self.rollout_steps:
            return control
        seconds = time.perf_counter() - self.start
        self.channel.send(self._measured(seconds) if self.warm else {"versions": self.versions})
        self.warm = True
        control.should_training_stop = self.channel.receive() is None
        self.start = time.perf_counter()
        return control

    def _measured(self, seconds: float) -> Measurement:
        reward = self.reward
        return {
            "seconds": seconds,
            "tokens": reward.tokens,
            "answers": reward.answers,
            "pass_rate": reward.right,
            "grading_seconds": reward.seconds,
        }


def make_trainer(work: dict[str, Any], limit: int, reward: Reward) -> GRPOTrainer:
    """The trainer: a rollout is all questions with all their answers, then the optimizer steps on them."""
    num_answers = len(work["questions"][str(limit)]) * work["num_completions"]
    batch_size = BATCH_SIZE[limit]
    settings = SETTINGS | {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": num_answers // work["optimizer_steps"] // batch_size,
        "generation_batch_size": num_answers,
        "num_generations": work["num_completions"],
        "max_completion_length": limit,
        "learning_rate": work["learning_rate"],
        "max_steps": 1_000_000,
    }
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    questions = work["questions"][str(limit)]
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(work["model"], dtype=MODEL_DTYPE),
        args=GRPOConfig(**settings),
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": q["messages"], "answer": q["answer"]} for q in questions]),
    )


def serve(channel: Channel, work: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Answers every command with one whole step; `arguments["limit"]` is the longest answer."""
    import transformers
    import trl

    limit = arguments["limit"]
    reward = Reward(work["stop_token_ids"])
    trainer = make_trainer(work, limit, reward)
    questions = work["questions"][str(limit)]
    found = trainer._tokenize_prompts([q["messages"] for q in questions])[0]
    assert [list(ids) for ids in found] == [q["prompt_ids"] for q in questions], "TRL asks with other tokens"
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    trainer.add_callback(Alternate(channel, reward, versions, work["optimizer_steps"]))
    try:
        trainer.train()
    finally:
        reward.task.verifier.close()
