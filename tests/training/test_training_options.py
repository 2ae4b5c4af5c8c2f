"""What can be set about learning: the values that are taken where nothing is set, and where each range ends."""

from typing import Any

import pytest
from pydantic import ValidationError

from negaware.training.options import TrainingOptions


def test_defaults_are_the_papers_where_it_has_them() -> None:
    """AdamW, learning rate, decay and clip: arXiv 2505.18116, appendix B."""
    assert TrainingOptions().model_dump() == {
        "optimizer_steps": 2,
        "micro_batch_tokens": 4096,
        "learning_rate": 1e-6,
        "schedule": "constant",
        "warmup_rollouts": 0,
        "betas": (0.9, 0.999),
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "compute_dtype": "auto",
        "activations": "kept",
        "offload": "none",
        "old_logprobs": None,
        "importance_weight_cap": None,
    }
    assert all(field.description for field in TrainingOptions.model_fields.values())  # what --help says


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("optimizer_steps", 1, 0),
        ("micro_batch_tokens", 1, 0),
        ("learning_rate", 1e-12, 0.0),
        ("warmup_rollouts", 0, -1),
        ("betas", (0.0, 0.999999), (-0.1, 0.9)),
        ("betas", (0.999999, 0.0), (0.9, 1.0)),
        ("weight_decay", 0.0, -1e-9),
        ("max_grad_norm", 1e-9, 0.0),
        ("importance_weight_cap", 1e-9, 0.0),
        ("learning_rate", 1.0, float("inf")),
        ("learning_rate", 1.0, float("nan")),
    ],
)
def test_where_each_range_ends(name: str, taken: Any, refused: Any) -> None:
    assert getattr(TrainingOptions(**{name: taken}), name) == taken
    with pytest.raises(ValidationError, match=name):
        TrainingOptions(**{name: refused})


def test_what_is_set_stays_and_nothing_unknown_is_taken() -> None:
    options = TrainingOptions()
    with pytest.raises(ValidationError, match="frozen"):
        options.learning_rate = 1.0
    with pytest.raises(ValidationError, match="momentum"):
        TrainingOptions(momentum=0.9)


def test_a_warm_up_by_steps_is_refused_unless_it_is_none() -> None:
    assert TrainingOptions.model_validate({"warmup_steps": 0, "learning_rate": 0.5}).learning_rate == 0.5
    with pytest.raises(ValidationError, match="warmup_steps is 3, but"):
        TrainingOptions.model_validate({"warmup_steps": 3})
