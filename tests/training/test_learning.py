"""A toy task that each objective learns: the whole loop of sampling and training, on a tiny model."""

import random

import pytest
from made_groups import make_group

from negaware.models.load import compute_dtype
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from tiny_models import VOCABULARY, llama, network

NUM_STEPS = 30


def is_right(prompt: list[int], token: int) -> bool:
    """A tenth of all tokens is right, another tenth for each question."""
    return (token + prompt[0]) % 10 == 0


@pytest.mark.parametrize(
    ("objective", "dtype"),
    [*((name, "float32") for name in ("nft", "rft", "grpo", "dr_grpo", "dapo")), ("nft", "bfloat16")],
)
def test_the_pass_rate_rises(objective, dtype, make_trainer):
    choose = random.Random(0)
    prompts = [[number, choose.randrange(VOCABULARY)] for number in range(10, 18)]
    model = llama(0, initializer_range=0.05)
    model.to(compute_dtype(dtype))
    trainer = make_trainer(
        model, objective, num_steps=2 * NUM_STEPS, learning_rate=6e-3, compute_dtype=dtype, optimizer_steps=2
    )
    engine = LocalEngine(network(model))
    pass_rates = []
    for step in range(NUM_STEPS):
        answers = engine.generate(prompts, 16, SamplingParams(1), seed=step)
        groups = [
            make_group(prompt, group, [is_right(prompt, completion.token_ids[0]) for completion in group])
            for prompt, group in zip(prompts, answers, strict=True)
        ]
        pass_rates.append(sum(group.pass_rate for group in groups) / len(groups))
        informative = [group for group in groups if 0 < group.pass_rate < 1]
        if informative:
            trainer.step(informative, seed=step)
            engine.load_weights(model.named_parameters(), version=step + 1)
    assert sum(pass_rates[:3]) / 3 < 0.25
    assert sum(pass_rates[-3:]) / 3 > 0.6, [round(rate, 2) for rate in pass_rates]
