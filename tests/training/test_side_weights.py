"""The weight that right and wrong answers got comes out of the backward pass, and is what a pass for it would give."""

from dataclasses import replace
from functools import wraps

import pytest
from made_groups import off_policy, sampled_groups

from negaware.objectives import OBJECTIVES
from negaware.objectives.contract import gradient_weights
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from rounding import gamma
from tiny_models import llama, network

CASES = [
    *((name, {}, None, {}) for name in OBJECTIVES),
    ("nft", {"ratio": "sequence", "epsilon": 0.8}, None, {}),
    ("nft", {}, "sequence_mean", {}),
    ("nft", {}, "constant", {}),
    ("nft", {}, None, {"old_logprobs": "recomputed", "importance_weight_cap": 1.1}),
    ("nft", {"ratio": "sequence"}, None, {"old_logprobs": "recomputed", "importance_weight_cap": 1.1}),
    ("grpo", {}, None, {"old_logprobs": "recomputed", "importance_weight_cap": 1.1}),
]


@pytest.fixture(scope="module")
def groups():
    return off_policy(sampled_groups(llama(0), num_groups=3, num_answers=4))


@pytest.mark.parametrize(("name", "options", "reduction", "training"), CASES)
def test_it_is_the_gradient_of_the_loss_before_its_reduction(name, options, reduction, training, groups):
    objective, seen = OBJECTIVES[name], []

    @wraps(objective.function)
    def watched(answers, **options):
        seen.append(replace(answers, logprobs=answers.logprobs.detach()))
        return objective.function(answers, **options)

    settings = TrainingOptions(compute_dtype="float32", optimizer_steps=1, micro_batch_tokens=60, **training)
    loss = LossSettings(replace(objective, function=watched), options, 1.0, 14, reduction)
    trainer = Trainer(network(llama(0, num_hidden_layers=1)), loss, settings, num_steps=10)
    run, num_batches = trainer.logprobs, []
    trainer.logprobs = lambda batch: num_batches.append(1) or run(batch)
    metrics = trainer.step(groups, 0)
    passes = 1 + objective.sees_groups + (trainer.options.old_logprobs == "recomputed")
    assert len(seen) == len(num_batches) / passes >= 2, "the loss is computed once a micro-batch"

    num_tokens = metrics["train/num_tokens"]
    sides = [
        sum(map(float, side)) for side in zip(*(gradient_weights(objective, a, options) for a in seen), strict=True)
    ]
    # Each token's weight is some thirty products, rounded otherwise when all of them are divided by one more number;
    # the sums are of positive terms.
    for side, expected in zip(("right", "wrong"), sides, strict=True):
        allowed = gamma(num_tokens + 40)
        assert metrics[f"train/weight_{side}"] == pytest.approx(expected / num_tokens, rel=allowed, abs=0)
    assert max(sides) > 0
