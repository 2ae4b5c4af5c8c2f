"""Groups as the collector would hand them over, sampled for real from a tiny model or made up."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel

from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.types import Completion, Group, Problem, Verdict
from tiny_models import VOCABULARY, network


def make_group(prompt: Sequence[int], completions: Sequence[Completion], right: Sequence[bool]) -> Group:
    """A group with these verdicts."""
    verdicts = tuple(Verdict(correct, "correct" if correct else "wrong") for correct in right)
    return Group(Problem("p", "?", "!"), tuple(prompt), tuple(completions), ("",) * len(verdicts), verdicts)


def sampled_groups(
    model: PreTrainedModel, num_groups: int = 5, num_answers: int = 6, seed: int = 0, temperature: float = 1.0
) -> list[Group]:
    """Answers of 1 to 14 tokens to questions of 2 to 19, sampled from the model; each group has both verdicts."""
    choose = random.Random(seed)
    prompts = [[choose.randrange(1, VOCABULARY) for _ in range(choose.randint(2, 19))] for _ in range(num_groups)]
    params = SamplingParams(14, temperature=temperature, stop_token_ids=(1, 2, 3, 4, 5))
    answers = LocalEngine(network(model)).generate(prompts, num_answers, params, seed)
    rights = []
    for _ in prompts:
        num_right = choose.randint(1, num_answers - 1)
        rights.append(choose.sample([True] * num_right + [False] * (num_answers - num_right), num_answers))
    return [make_group(*each) for each in zip(prompts, answers, rights, strict=True)]


def off_policy(groups: list[Group], size: float = 0.3) -> list[Group]:
    """The groups with other recorded log-probabilities, so that no ratio is 1."""
    noise = random.Random(1)
    return [
        replace(
            group,
            completions=tuple(
                replace(done, logprobs=done.logprobs + np.float32([noise.uniform(-size, size) for _ in done.logprobs]))
                for done in group.completions
            ),
        )
        for group in groups
    ]


def prompts_and_tokens(groups: Sequence[Group]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and tokens of each answer, in order."""
    return [(group.prompt_ids, tuple(done.token_ids.tolist())) for group in groups for done in group.completions]
