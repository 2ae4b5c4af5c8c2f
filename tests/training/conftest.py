"""A trainer of a tiny model, in float32 unless told otherwise."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedModel

from negaware.models.load import compute_dtype
from negaware.objectives import OBJECTIVES
from negaware.objectives.ops import Reduction
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from tiny_models import network

FLOAT32: dict[str, Any] = {"compute_dtype": "float32", "learning_rate": 1e-3, "weight_decay": 0.0, "optimizer_steps": 1}


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """A trainer of this model: objective's name and options, temperature, and training options."""

    def make(
        model: PreTrainedModel,
        objective: str = "nft",
        objective_options: dict[str, Any] | None = None,
        temperature: float = 1.0,
        num_steps: int = 100,
        questions: int | None = None,
        reduction: Reduction | None = None,
        **options: Any,
    ) -> Trainer:
        loss = LossSettings(OBJECTIVES[objective], objective_options or {}, temperature, 14, reduction)
        training = TrainingOptions(**FLOAT32 | options)
        ready = network(model, compute_dtype(training.compute_dtype))
        return Trainer(ready, loss, training, num_steps, questions=questions)

    return make
