"""Operations and seconds of one step, every answer as long as it may be. Pure arithmetic on matrix products.

A product of a token with a weight is two operations. What is between products, the optimizer, grading, evaluation and
checkpoints are left out: at these sizes they are a few per cent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from negaware.planning.memory import SINGLE, rows_at_once
from negaware.planning.setting import Machine, Setting

FLASH_BACKWARD = 2.5
"""Attention's backward pass in forward passes: five products where forward has two (FlashAttention-2)."""
Numbers = float | np.ndarray


@dataclass(frozen=True, slots=True)
class Work:
    """One rollout step's training: rows of a question with its answers, in micro-batches, on ranks in lock-step."""

    answers_a_row: int
    rows: int
    """Of an optimizer step, all ranks together."""
    row_tokens: int
    rows_together: int
    """In a micro-batch."""
    micro_batches: int
    """Of an optimizer step, one rank; all ranks wait for the one with most."""
    forward: float
    """Operations of one forward pass over a row, attention apart."""
    attention: float
    """Operations of its attention."""
    head: float
    """Operations of the head, forward and backward: the logits are computed twice."""

    def balance(self, ranks: int) -> float:
        """The part of ranks' time in which they have a row."""
        return self.rows / (self.micro_batches * self.rows_together * ranks)

    def row(self, setting: Setting) -> float:
        """Operations of a row's forward and backward pass."""
        again = setting.activations == "recomputed"
        of_weights = not setting.model.is_frozen  # adapters' own products are too small to count
        body = (2 + of_weights + again) * self.forward + (1 + FLASH_BACKWARD + again) * self.attention + self.head
        return body + setting.extra_passes * (self.forward + self.attention + self.head / 4)


def work(setting: Setting) -> Work:
    """How an optimizer step is cut up. Answers follow their question in a row as long as the micro-batch holds them."""
    model, prompt, answer = setting.model, setting.prompt_tokens, setting.answer_tokens
    room = max(1, (setting.micro_batch_tokens - prompt) // answer)
    rows_a_question = -(-setting.completions // room)
    in_row = -(-setting.completions // rows_a_question)
    row_tokens = prompt + in_row * answer
    rows = max(1, setting.questions // setting.optimizer_steps) * rows_a_question
    together = max(1, setting.micro_batch_tokens // row_tokens)
    micro_batches = -(-rows // (together * setting.ranks))
    layers = model.num_layers * model.layer_parameters
    pairs = prompt**2 / 2 + in_row * (answer * prompt + answer**2 / 2)
    return Work(
        answers_a_row=in_row,
        rows=rows,
        row_tokens=row_tokens,
        rows_together=together,
        micro_batches=micro_batches,
        forward=2.0 * layers * row_tokens,
        attention=4.0 * model.num_layers * model.attended_width * pairs,
        head=(6.0 if model.is_frozen else 8.0) * model.head_parameters * in_row * answer,
    )


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one rollout step."""

    sampling: float
    training: float
    communication: float
    """Of training, the part that computing doesn't hide."""
    handover: float
    """New weights to the sampler."""

    @property
    def step(self) -> float:
        """All of it."""
        return self.sampling + self.training + self.communication + self.handover


def seconds(setting: Setting, machine: Machine) -> Seconds:
    """What a step takes on these machines."""
    cut = work(setting)
    rows = cut.micro_batches * cut.rows_together
    computing = rows * cut.row(setting) / (machine.operations * machine.efficiency)
    moving = cut.micro_batches * moved_bytes(setting) / machine.network
    return Seconds(
        sampling=_sampling_seconds(setting, machine),
        training=setting.optimizer_steps * computing,
        communication=setting.optimizer_steps * max(0.0, moving - computing),
        handover=handover_seconds(setting, machine) if setting.ranks > 1 else 0.0,
    )


def handover_seconds(setting: Setting, machine: Machine) -> float:
    """New weights to a sampler that has a copy of its own."""
    return setting.itemsize * setting.model.num_parameters / machine.network


def moved_bytes(setting: Setting) -> int:
    """What a rank gets from the others in a micro-batch."""
    if setting.ranks == 1:
        return 0
    # Weights are gathered for each forward pass and for the backward pass, gradients summed in float32 after it.
    gathers = 2 + setting.extra_passes
    return gathers * setting.itemsize * setting.model.num_parameters + SINGLE * setting.model.num_trained


def _sampling_seconds(setting: Setting, machine: Machine) -> float:
    rows = min(rows_at_once(setting, machine), setting.sequences_an_engine)
    context = setting.prompt_tokens + setting.answer_tokens / 2
    steps = setting.answer_tokens * setting.sequences_an_engine / rows
    questions = setting.sequences_an_engine / setting.completions
    one = decode_seconds(setting, machine, rows, rows * context)
    return float(steps * one + prefill_seconds(setting, machine, questions * setting.prompt_tokens))


def decode_seconds(setting: Setting, machine: Machine, rows: Numbers, context: Numbers) -> Numbers:
    """A decode step of so many rows with so many tokens behind them, all together: it reads the weights once, and
    the keys and values of all those tokens."""
    model = setting.model
    read = setting.itemsize * _computing(setting) + context * model.cache_bytes(setting.itemsize)
    operations = rows * 2 * _computing(setting) + 4 * model.num_layers * model.attended_width * context
    longer = np.maximum(read / machine.bandwidth, operations / machine.operations)
    return longer / setting.sampler.tensor_parallel / machine.efficiency


def prefill_seconds(setting: Setting, machine: Machine, tokens: float) -> float:
    """Keys and values of so many tokens, computed at once."""
    return (
        2 * _computing(setting) * tokens / (machine.operations * machine.efficiency * setting.sampler.tensor_parallel)
    )


def _computing(setting: Setting) -> int:
    model = setting.model
    return model.num_parameters - model.root_parameters + model.head_parameters
