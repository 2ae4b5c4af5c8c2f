"""The work that every contender is given: model, questions, prompts, limits. Deterministic, written as one JSON file.

It makes no measurement. The prompts' token ids stand in the file, so that a contender needs nothing of negaware.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "smollm2-135m-instruct"
CONFIG = Path(__file__).parents[1] / "configs" / "demo.yaml"
NUM_QUESTIONS = 16
NUM_COMPLETIONS = 8
OPTIMIZER_STEPS = 2
LEARNING_RATE = 1e-12
"""So small that every repetition starts from the same policy and does the same work: AdamW's first steps move every
weight by the learning rate, and at 1e-7 two of them already shorten the answers by a fifth."""

LONG_PROMPT = "{question} Explain every step in detail, then check the result in a second way. " + (
    "Put your final answer within \\boxed{}."
)
LIMITS = (24, 128, 512)
"""Longest answers, in tokens. The shortest ask the demo's questions; the others ask for an explanation."""

TRAINING_SHAPES: dict[str, dict[str, Any]] = {
    "short": {"questions": 16, "question_tokens": 56, "answer_tokens": (2, 5, 7, 9, 11, 13, 17, 24), "steps": 2},
    "long": {
        "questions": 4,
        "question_tokens": 200,
        "answer_tokens": (64, 128, 192, 256, 320, 384, 448, 512),
        "steps": 2,
    },
}
"""What the rows on training alone train on, by the name of the shape."""


def question_set(limit: int) -> list[dict[str, Any]]:
    """The questions whose answers may have `limit` tokens: id, question, gold answer, chat messages."""
    from negaware.config import load_config
    from negaware.tasks.options import BOXED_PROMPT, ArithmeticOptions
    from negaware.tasks.procedural import arithmetic_problems

    options = load_config(CONFIG, []).task if limit <= LIMITS[0] else None
    if not isinstance(options, ArithmeticOptions):
        options = ArithmeticOptions(num_problems=NUM_QUESTIONS, low=11, high=99, forms=("add_subtract",))
    prompt = BOXED_PROMPT if limit <= LIMITS[0] else LONG_PROMPT
    return [
        {
            "id": problem.id,
            "question": problem.question,
            "answer": problem.answer,
            "messages": [{"role": "user", "content": prompt.replace("{question}", problem.question)}],
        }
        for problem in arithmetic_problems(options)[:NUM_QUESTIONS]
    ]


def make_work(limits: Sequence[int] = LIMITS) -> dict[str, Any]:
    """The whole work. Loads the tokenizer, and makes the embedded model's folder where there is none."""
    from negaware.models.embedded import embedded_model_folder
    from negaware.models.load import load_codec

    codec = load_codec(MODEL)
    questions = {str(limit): question_set(limit) for limit in limits}
    for asked in questions.values():
        for question in asked:
            question["prompt_ids"] = codec.encode(question["messages"])
    return {
        "model": str(embedded_model_folder()),
        "stop_token_ids": list(codec.stop_token_ids),
        "num_completions": NUM_COMPLETIONS,
        "optimizer_steps": OPTIMIZER_STEPS,
        "learning_rate": LEARNING_RATE,
        "questions": questions,
    }


def write_work(path: Path, limits: Sequence[int] = LIMITS) -> None:
    """Writes the work where the workers read it."""
    path.write_text(json.dumps(make_work(limits)), encoding="utf-8")


def synthetic_tokens(num_tokens: int, place: int, vocabulary: int) -> list[int]:
    """Token ids that look random and are the same everywhere; `place` tells texts apart."""
    state, tokens = 2654435761 * (place + 1) % 2**32, []
    for _ in range(num_tokens):
        state = (1664525 * state + 1013904223) % 2**32
        tokens.append(3 + (state >> 8) % (vocabulary - 3))
    return tokens
