"""Operations and seconds of one step in which every answer has the greatest length allowed.

Only matrix products are counted; one token times one weight is two operations. Everything else, also the optimizer,
grading, evaluation and checkpoints, is left out: at these sizes a few per cent.
"""

from __future__ import annotations

import numpy as np

from negaware.planning.memory import SINGLE, rows_at_once
from negaware.planning.setting import Machine, Setting

FLASH_BACKWARD = 2.5
"""The cost of attention's backward pass, in forward passes: five products instead of two (FlashAttention-2)."""
Numbers = float | np.ndarray


class Work:
    """How a rollout step is trained: rows (a question with answers) in micro-batches, on ranks in lock-step."""

    def __init__(self, setting: Setting) -> None:
        """A row is a question with as many of its answers as fit a micro-batch."""
        model, prompt, answer = setting.model, setting.prompt_tokens, setting.answer_tokens
        room = max(1, (setting.micro_batch_tokens - prompt) // answer)
        rows_a_question = -(-setting.completions // room)
        self.answers_a_row = answers = -(-setting.completions // rows_a_question)
        self.row_tokens = prompt + answers * answer
        self.rows = max(1, setting.questions // setting.optimizer_steps) * rows_a_question
        """Rows of an optimizer step, over all ranks."""
        self.rows_together = max(1, setting.micro_batch_tokens // self.row_tokens)
        """Rows of a micro-batch."""
        self.micro_batches = -(-self.rows // (self.rows_together * setting.ranks))
        """Micro-batches of an optimizer step, on the rank with most: the other ranks wait for it."""
        self.forward = 2.0 * model.num_layers * model.layer_parameters * self.row_tokens
        """Operations of one forward pass over a row, without attention and head."""
        pairs = prompt**2 / 2 + answers * (answer * prompt + answer**2 / 2)
        self.attention = 4.0 * model.num_layers * model.attended_width * pairs
        """Operations of attention in that forward pass."""
        self.head = (6.0 if model.is_frozen else 8.0) * model.head_parameters * answers * answer
        """Operations of the head, forward and backward; the logits are computed twice."""

    def balance(self, ranks: int) -> float:
        """The fraction of their time in which ranks have a row to train on."""
        return self.rows / (self.micro_batches * self.rows_together * ranks)

    def row(self, setting: Setting) -> float:
        """Operations of a row's forward and backward pass."""
        again = setting.activations == "recomputed"
        weight_gradients = not setting.model.is_frozen  # products with adapters are too small to count
        body = (2 + weight_gradients + again) * self.forward + (1 + FLASH_BACKWARD + again) * self.attention + self.head
        return body + setting.extra_passes * (self.forward + self.attention + self.head / 4)


class Seconds:
    """The seconds of one rollout step on these machines."""

    def __init__(self, setting: Setting, machine: Machine) -> None:
        cut = Work(setting)
        computing = cut.micro_batches * cut.rows_together * cut.row(setting) / (machine.operations * machine.efficiency)
        moving = cut.micro_batches * moved_bytes(setting) / machine.network
        rows = min(rows_at_once(setting, machine), setting.sequences_an_engine)
        context = setting.prompt_tokens + setting.answer_tokens / 2
        steps = setting.answer_tokens * setting.sequences_an_engine / rows
        questions = setting.sequences_an_engine / setting.completions
        prefill = prefill_seconds(setting, machine, questions * setting.prompt_tokens)
        self.sampling = float(steps * decode_seconds(setting, machine, rows, rows * context) + prefill)
        self.training = setting.optimizer_steps * computing
        self.communication = setting.optimizer_steps * max(0.0, moving - computing)
        """Seconds in which ranks wait for the network, because it is slower than computing."""
        self.handover = handover_seconds(setting, machine) if setting.ranks > 1 else 0.0
        """Sending new weights to the sampler."""
        self.step = self.sampling + self.training + self.communication + self.handover


def handover_seconds(setting: Setting, machine: Machine) -> float:
    """Seconds to send new weights to a sampler that has its own copy of them."""
    return setting.itemsize * setting.model.num_parameters / machine.network


def moved_bytes(setting: Setting) -> int:
    """Bytes that a rank gets from the others in a micro-batch."""
    if setting.ranks == 1:
        return 0
    # Weights are gathered for each forward pass and for the backward pass, gradients summed in float32 after it.
    gathers = 2 + setting.extra_passes
    return gathers * setting.itemsize * setting.model.num_parameters + SINGLE * setting.model.num_trained


def decode_seconds(setting: Setting, machine: Machine, rows: Numbers, context: Numbers) -> Numbers:
    """Seconds of a decode step: it reads the weights once, and the keys and values of `context` tokens in all."""
    model = setting.model
    read = setting.itemsize * model.computing_parameters + context * model.cache_bytes(setting.itemsize)
    operations = rows * 2 * model.computing_parameters + 4 * model.num_layers * model.attended_width * context
    longer = np.maximum(read / machine.bandwidth, operations / machine.operations)
    return longer / setting.sampler.tensor_parallel / machine.efficiency


def prefill_seconds(setting: Setting, machine: Machine, tokens: float) -> float:
    """Seconds to compute the keys and values of so many tokens at once."""
    operations_a_second = machine.operations * machine.efficiency * setting.sampler.tensor_parallel
    return 2 * setting.model.computing_parameters * tokens / operations_a_second
