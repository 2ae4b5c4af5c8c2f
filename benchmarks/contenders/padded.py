"""Training as most loops write it: a row an answer, padded to the micro-batch's longest, all answers' logits at once.

The objective, the optimizer and its float32 masters are negaware's own: what differs is the layout and the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from channel import Channel, Command, Measurement
from memory import PeakMemory, memory_and_time
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from work import TRAINING_SHAPES

from contenders.rollouts import synthetic_groups
from negaware.models.load import compute_dtype
from negaware.models.logprobs import Head, token_logprobs
from negaware.models.network import keep_masters
from negaware.objectives import OBJECTIVES
from negaware.training.optimizer import MasterOptimizer
from negaware.training.options import TrainingOptions
from negaware.types import Completion, Group

ROWS = {"short": 16, "long": 2}
"""Answers in a micro-batch: what was fastest."""


class PaddedTrainer:
    """NFT's optimizer step on padded rows."""

    def __init__(self, model: PreTrainedModel, options: TrainingOptions, rows: int) -> None:
        self.model, self.options, self.rows = model, options, rows
        masters = keep_masters(model, compute_dtype(options.compute_dtype))
        self.optimizer = MasterOptimizer(model, masters, options, num_rollouts=1_000_000)

    def step(self, groups: Sequence[Group], optimizer_steps: int) -> dict[str, float]:
        """Trains on the groups once; every `optimizer_steps`-th group makes a mini-batch."""
        losses, norms = [], []
        for index in range(optimizer_steps):
            loss, norm = self.accumulate(groups[index::optimizer_steps])
            self.optimizer.step(norm)
            losses.append(loss)
            norms.append(float(norm))
        return {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}

    def accumulate(self, groups: Sequence[Group]) -> tuple[float, Tensor]:
        """The mini-batch's loss and the norm of its gradient, which the masters hold then."""
        answers = [
            (group, completion, verdict.correct)
            for group in groups
            for completion, verdict in zip(group.completions, group.verdicts, strict=True)
        ]
        num_tokens = sum(completion.num_tokens for _, completion, _ in answers)
        total = 0.0
        for first in range(0, len(answers), self.rows):
            rows = answers[first : first + self.rows]
            logprobs, old, mask = self._logprobs([(group, completion) for group, completion, _ in rows])
            correct = torch.tensor([right for *_, right in rows])
            pass_rate = torch.tensor([group.pass_rate for group, *_ in rows])
            loss = OBJECTIVES["nft"](logprobs, old, mask, correct, pass_rate).sum() / num_tokens
            loss.backward()
            total += float(loss.detach())
        return total, self.optimizer.gradient_norm()

    def _logprobs(self, rows: Sequence[tuple[Group, Completion]]) -> tuple[Tensor, Tensor, Tensor]:
        """log π, log π_old and the mask of the rows' answers, [rows, longest answer]; answers start in one column."""
        question = max(len(group.prompt_ids) for group, _ in rows)
        answer = max(completion.num_tokens for _, completion in rows)
        tokens = torch.zeros(len(rows), question + answer, dtype=torch.long)
        seen, old = torch.zeros_like(tokens), torch.zeros(len(rows), answer)
        for row, (group, completion) in enumerate(rows):
            prompt, length = group.prompt_ids, completion.num_tokens
            place = slice(question - len(prompt), question + length)
            tokens[row, place] = torch.tensor([*prompt, *completion.token_ids])
            seen[row, place] = 1
            old[row, :length] = torch.tensor(completion.logprobs)
        logits = self.model(
            tokens,
            attention_mask=seen,
            position_ids=(seen.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=answer + 1,
        ).logits[:, :-1]
        logprobs = logits.float().log_softmax(-1).gather(-1, tokens[:, question:, None]).squeeze(-1)
        return logprobs, old, seen[:, question:].bool()


def logprob_memory(tokens: int, vocabulary: int, width: int = 576) -> Measurement:
    """Memory that negaware's log-probabilities take for so many tokens, forward and backward, in bfloat16.

    Weight and hidden states exist before. Nothing can do without their gradients (that of the hidden states is added up
    in float32, and given in bfloat16): what is taken beyond them is the logits' part.
    """
    weight = torch.randn(vocabulary, width, dtype=torch.bfloat16).div_(10).requires_grad_()
    hidden = torch.randn(tokens, width, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.arange(tokens) % vocabulary
    with PeakMemory() as memory:
        token_logprobs(hidden, Head(weight), targets)[0].sum().backward()
    growth = memory.measured()["growth_mb"]
    gradients = (weight.numel() * 2 + hidden.numel() * (4 + 2)) / 2**20
    return {"growth_mb": growth, "gradients_mb": gradients, "logits_mb": growth - gradients}


def serve(channel: Channel, work: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Answers `{"do": "train", "shape": …}` and `{"do": "memory", "tokens": …, "vocabulary": …}`."""
    import transformers

    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.float32).eval()
    options = TrainingOptions(learning_rate=work["learning_rate"], weight_decay=0.0)
    trainer = PaddedTrainer(model, options, rows=1)

    def train(command: Command) -> Measurement:
        shape = TRAINING_SHAPES[command["shape"]]
        groups = synthetic_groups(shape, work["num_completions"], model.config.vocab_size)
        trainer.rows = ROWS[command["shape"]]
        metrics, measured = memory_and_time(lambda: trainer.step(groups, shape["steps"]))
        tokens = sum(completion.num_tokens for group in groups for completion in group.completions)
        return {"tokens": tokens, "loss": metrics["loss"]} | measured

    def answer(command: Command) -> Measurement:
        if command["do"] == "memory":
            return logprob_memory(command["tokens"], command["vocabulary"])
        return train(command)

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    channel.answer_all({"versions": versions}, answer)
