"""How cost should grow: the factors that growth.py varies, and what one step is counted to take. Pure arithmetic.

A count knows no constant of negaware but the logits that it holds at once: operations and bytes of the work as it has
to be done, turned into seconds by two rates of the machine. Only its slope is compared with what is measured; what is
left out (small operations, Python, the tokens' choice) is what measured and counted slopes differ by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

QUANTITIES = ("sampling_seconds", "training_seconds", "sampling_mib", "training_mib")
"""What is measured of each step; figures and tables keep this order."""

HALF, SINGLE = 2, 4
"""Bytes of a bfloat16 and of a float32."""
OPTIMIZER_BYTES = 46
"""Memory traffic an optimizer step, for each weight: norm 4, clipping 8, AdamW 7 float32, the model's copy 6."""
GRADIENT_BYTES = 16
"""Memory traffic a micro-batch, for each weight: its bfloat16 gradient, added to the float32 one."""
LOGITS_AT_ONCE = 4 * 2**20
"""Logits held at once in training, of any number of tokens."""


@dataclass(frozen=True)
class Model:
    """What a count needs of a Llama-like model: SmolLM2-135M's sizes unless said otherwise."""

    width: int = 576
    mlp: int = 1536
    layers: int = 30
    vocabulary: int = 49_152

    @classmethod
    def of_width(cls, width: int) -> Model:
        """The narrow and wide ones: 8 layers, MLP 8/3 of the width rounded to 64; the vocabulary stays."""
        return cls(width, 64 * round(width * 8 / 3 / 64), layers=8)

    @property
    def kv_width(self) -> int:
        """Width of the keys, and of the values: a third of the heads have their own."""
        return self.width // 3

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' products."""
        return self.layers * (2 * self.width**2 + 2 * self.width * self.kv_width + 3 * self.width * self.mlp)

    @property
    def head_weights(self) -> int:
        """Weights of the head, which are the embedding's too."""
        return self.width * self.vocabulary

    @property
    def weights(self) -> int:
        """All of them but the norms'."""
        return self.layer_weights + self.head_weights

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token."""
        return self.layers * 2 * self.kv_width * HALF

    @property
    def activation_bytes(self) -> int:
        """What the layers keep of one token for the backward pass.

        The float32 stream before each half, queries, keys, values, what was attended to, and the gates.
        """
        kept = 2 * SINGLE * self.width + HALF * (2 * self.width + 2 * self.kv_width + 2 * self.mlp)
        return self.layers * kept

    @property
    def pair_operations(self) -> int:
        """Operations of one query on one key and its value."""
        return 4 * self.layers * self.width


@dataclass(frozen=True)
class Shape:
    """One step: every answer has exactly `answer_tokens` tokens."""

    questions: int = 4
    completions: int = 8
    answer_tokens: int = 24
    prompt_tokens: int = 48
    optimizer_steps: int = 2
    micro_batch_tokens: int = 1024
    max_sequences: int = 256

    @property
    def answers(self) -> int:
        """In all."""
        return self.questions * self.completions

    @property
    def question_tokens(self) -> int:
        """Tokens of a question with its answers that enter the model; an answer's last token predicts nothing."""
        return self.prompt_tokens + self.completions * (self.answer_tokens - 1)

    @property
    def pairs(self) -> float:
        """Query-key pairs of a question with its answers: causal, and no answer sees another."""
        prompt, answer = self.prompt_tokens, self.answer_tokens - 1
        return prompt**2 / 2 + self.completions * (answer * prompt + answer**2 / 2)


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second: bfloat16 operations of a matrix product, bytes read from memory."""

    operations: float
    bytes: float

    def seconds(self, operations: float, read: float) -> float:
        """Both at once: the longer one counts."""
        return max(operations / self.operations, read / self.bytes)


def sampling_seconds(model: Model, shape: Shape, rates: Rates) -> float:
    """Prompts once, then a decode step a token: all weights are read, and a row's keys and a question's."""
    prompts = 2.0 * model.layer_weights * shape.questions * shape.prompt_tokens
    total = rates.seconds(prompts, HALF * model.weights)
    for rows in _waves(shape):
        products = rates.seconds(2.0 * rows * model.weights, HALF * model.weights)
        for step in range(1, shape.answer_tokens):
            pairs = rows * (shape.prompt_tokens + step)
            kept = rows / shape.completions * shape.prompt_tokens + rows * step
            total += products + rates.seconds(pairs * model.pair_operations, kept * model.cache_bytes)
    return total


def training_seconds(model: Model, shape: Shape, rates: Rates) -> float:
    """Forward and two backward products of every token, attention's pairs, gradients added up, the optimizer."""
    layers = shape.questions * shape.question_tokens * model.layer_weights
    head = shape.answers * shape.answer_tokens * model.head_weights
    operations = 6.0 * (layers + head) + 3.0 * shape.questions * shape.pairs * model.pair_operations
    steps = min(shape.optimizer_steps, shape.questions)
    traffic = model.weights * (steps * OPTIMIZER_BYTES + steps * _micro_batches(shape) * GRADIENT_BYTES)
    return operations / rates.operations + traffic / rates.bytes


def sampling_mib(model: Model, shape: Shape, rates: Rates) -> float:
    """Keys and values of the answers decoded at once and of their questions, their logits with the probabilities, the
    layers' weights as products read them, a float32 head."""
    rows = max(_waves(shape))
    cache = (rows * shape.answer_tokens + rows / shape.completions * shape.prompt_tokens) * model.cache_bytes
    weights = HALF * model.layer_weights + SINGLE * model.head_weights
    return (cache + 2 * SINGLE * rows * model.vocabulary + weights) / 2**20


def training_mib(model: Model, shape: Shape, rates: Rates) -> float:
    """The largest micro-batch's activations, the logits held at once, the head's gradient and the embedding's, all
    gradients.

    The float32 gradients come on top even with a single micro-batch: what the activations give back piece by piece is
    counted as not used again before the step ends.
    """
    tokens = _mini_batch_tokens(shape) if _micro_batches(shape) == 1 else shape.micro_batch_tokens
    logits = LOGITS_AT_ONCE * (2 * SINGLE + HALF)
    gradients = SINGLE * model.weights + 2 * HALF * model.head_weights
    return (tokens * model.activation_bytes + logits + gradients) / 2**20


COUNTS: Mapping[str, Callable[[Model, Shape, Rates], float]] = {
    "sampling_seconds": sampling_seconds,
    "training_seconds": training_seconds,
    "sampling_mib": sampling_mib,
    "training_mib": training_mib,
}


@dataclass(frozen=True)
class Factor:
    """One thing that is varied; `limits` holds, for each quantity, the slope in the end and why."""

    name: str
    title: str
    axis: str
    values: tuple[int, ...]
    quick_values: tuple[int, ...]
    base: Shape
    limits: Mapping[str, tuple[int, str]]

    def shape(self, value: int) -> Shape:
        """The step at this value."""
        fields = {"length": "answer_tokens", "completions": "completions", "questions": "questions"}
        return replace(self.base, **{fields[self.name]: value}) if self.name in fields else self.base

    def model(self, value: int) -> Model:
        """The model at this value."""
        return Model.of_width(value) if self.name == "width" else Model()

    def describe(self) -> str:
        """What stays as it is, in words."""
        base = self.base
        varied = {
            "questions": f"{base.questions} question{'s' * (base.questions > 1)}",
            "completions": f"{base.completions} answers a question",
            "length": f"{base.answer_tokens} tokens an answer",
        }
        fixed = [words for name, words in varied.items() if name != self.name]
        model = "random Llama of 8 layers" if self.name == "width" else "SmolLM2-135M"
        batches = f"{base.optimizer_steps} optimizer step{'s' * (base.optimizer_steps > 1)}"
        return f"{', '.join([*fixed, batches])}, micro-batches of at most {base.micro_batch_tokens:,} tokens; {model}"


FACTORS: dict[str, Factor] = {
    factor.name: factor
    for factor in (
        Factor(
            "length",
            "answer length",
            "tokens an answer",
            (16, 32, 64, 128, 256, 512, 1024, 2048),
            (16, 96),
            # One micro-batch holds even the longest, so that memory grows by the answers and not up to a limit.
            Shape(questions=1, completions=2, optimizer_steps=1, micro_batch_tokens=8192),
            {
                "sampling_seconds": (
                    2,
                    "a token reads all keys before it, n²; here reading the weights, n, leads",
                ),
                "training_seconds": (2, "attention's pairs, n²; the products, n, lead below some thousand tokens"),
                "sampling_mib": (1, "keys and values; at first the weights' copies and the logits"),
                "training_mib": (
                    1,
                    "activations, here in one micro-batch (attention keeps no pairs); the gradients, 0",
                ),
            },
        ),
        Factor(
            "completions",
            "answers a question, K",
            "K",
            (2, 4, 8, 16, 32, 64),
            (2, 8),
            Shape(),
            {
                "sampling_seconds": (1, "arithmetic; few rows cost what reading the weights costs, whatever K is"),
                "training_seconds": (1, "tokens; for small K the prompts and the optimizer count too"),
                "sampling_mib": (1, "a row of keys, values and logits an answer"),
                "training_mib": (0, "one micro-batch and the gradients, once it is full"),
            },
        ),
        Factor(
            "questions",
            "questions a rollout",
            "questions",
            (2, 4, 8, 16, 32, 64),
            (2, 4),
            Shape(),
            {
                "sampling_seconds": (1, "arithmetic; few rows cost what reading the weights costs"),
                "training_seconds": (1, "tokens; the optimizer's share, 0, vanishes"),
                "sampling_mib": (0, f"{Shape().max_sequences} answers are decoded at once, no more"),
                "training_mib": (0, "one micro-batch and the gradients, once it is full"),
            },
        ),
        Factor(
            "width",
            "model width",
            "hidden size",
            (192, 384, 576, 768, 960, 1152),
            (192, 576),
            Shape(),
            {
                "sampling_seconds": (2, "the layers' products, w²; the head's, w, are half of them at 576"),
                "training_seconds": (2, "the layers' products and the optimizer, w²; the head's, w"),
                "sampling_mib": (2, "the layers' weights as products read them, w²; keys, values and the head, w"),
                "training_mib": (2, "gradients, w²; activations, w; the logits, 0"),
            },
        ),
    )
}


def upper_half(values: Sequence[float]) -> list[int]:
    """Places of the values in the upper half of their range on a log axis, the last two at the least."""
    middle = math.sqrt(values[0] * values[-1])
    places = [place for place, value in enumerate(values) if value >= middle * (1 - 1e-9)]
    return places if len(places) > 1 else list(range(max(0, len(values) - 2), len(values)))


def slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """The least-squares slope of log cost over log value; ValueError where a logarithm or a slope doesn't exist."""
    if len(values) != len(costs) or len(set(values)) < 2:
        raise ValueError(f"A slope needs two different values with a cost each, not {values} and {costs}.")
    if min(*values, *costs) <= 0:
        raise ValueError(f"A log-log slope needs positive numbers, not {values} and {costs}.")
    x, y = [math.log(value) for value in values], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in x)


def upper_slope(values: Sequence[float], costs: Sequence[float]) -> float:
    """The slope over the upper half of the range."""
    places = upper_half(values)
    return slope([values[place] for place in places], [costs[place] for place in places])


def expected_slope(factor: Factor, values: Sequence[int], quantity: str, rates: Rates) -> float:
    """The slope of the count over the same points."""
    counts = [COUNTS[quantity](factor.model(value), factor.shape(value), rates) for value in values]
    return upper_slope(values, counts)


def _waves(shape: Shape) -> list[int]:
    """Rows decoded together, one number a wave: as all answers are equally long, a wave ends before the next begins."""
    full = max(1, shape.max_sequences // shape.completions) * shape.completions
    whole, rest = divmod(shape.answers, full)
    return [full] * whole + [rest] * (rest > 0)


def _mini_batch_tokens(shape: Shape) -> int:
    return math.ceil(shape.questions / min(shape.optimizer_steps, shape.questions)) * shape.question_tokens


def _micro_batches(shape: Shape) -> int:
    """Micro-batches of one optimizer step."""
    return math.ceil(_mini_batch_tokens(shape) / shape.micro_batch_tokens)
