"""Sleep, of which vLLM has a mode on GPUs alone: here the real engine's is put in by hand, and forgets as that does."""

from typing import Any

import pytest
from conformance import random_prompts
from test_vllm import new_engine

import tiny_models
from negaware.rollout.engine import SamplingParams
from tiny_models import llama

PROMPTS = random_prompts(30, (5, 9))
PARAMS = SamplingParams(12, temperature=0.0)
ALIVE: list[Any] = []
"""With an engine vLLM takes down what all of the process's engines share, and in a circle it goes at any moment."""
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


class Sleep:
    """Level 2: weights are gone, and nothing is loaded or sampled before their memory and the cache's are back."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.asleep = engine, set[str]()
        self.rpc, self.step = engine.collective_rpc, engine.step
        engine.sleep, engine.wake_up, engine.is_sleeping = self.sleep, self.wake_up, lambda: bool(self.asleep)
        engine.collective_rpc, engine.step = self.guarded_rpc, self.guarded_step

    def sleep(self, level: int) -> None:
        assert level == 2
        assert not self.engine.has_unfinished_requests()
        self.rpc(_forget)
        self.asleep = {"weights", "kv_cache"}

    def wake_up(self, tags: list[str]) -> None:
        self.asleep -= set(tags)

    def guarded_rpc(self, *arguments: Any, **options: Any) -> Any:
        # The cache's memory is what the weights are gathered in.
        assert self.asleep in (set(), {"kv_cache"})
        return self.rpc(*arguments, **options)

    def guarded_step(self) -> Any:
        assert not self.asleep
        return self.step()


def _forget(worker: Any) -> None:
    for weight in worker.get_model().parameters():
        weight.data.fill_(float("nan"))


@pytest.fixture(autouse=True)
def _wide_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU kernels know heads of 32 and more; the suite's models have 8."""
    monkeypatch.setitem(tiny_models.SHAPE, "head_dim", 32)


def test_a_model_that_slept_samples_from_the_weights_that_it_was_given() -> None:
    old, new = llama(8), llama(9)
    engine, other = new_engine(old), new_engine(new)
    ALIVE.extend((engine, other))
    engine.sleeps = True
    Sleep(engine.engine)
    expected = other.generate(PROMPTS, 2, PARAMS, 0)
    for version in (1, 2):
        engine.sleep()
        engine.load_weights(new.named_parameters(), version)
        found = engine.generate(PROMPTS, 2, PARAMS, 0)
        assert [done.token_ids.tolist() for group in found for done in group] == [
            done.token_ids.tolist() for group in expected for done in group
        ]
        assert {span.version for group in found for done in group for span in done.spans} == {version}
