"""The order in which vLLM is put to sleep and woken: on GPUs only, so what is called is written down in its stead."""

from typing import Any

from negaware.rollout.vllm import VLLMEngine
from tiny_models import llama


class Sleeper:
    """Of vLLM's engine what sleep has to do with. It takes no weights without memory for them."""

    def __init__(self) -> None:
        self.awake = {"weights", "kv_cache"}
        self.calls: list[Any] = []

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))
        self.awake.clear()

    def is_sleeping(self) -> bool:
        return self.awake != {"weights", "kv_cache"}

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(("wake up", *tags))
        self.awake.update(tags)

    def collective_rpc(self, method: Any, kwargs: dict[str, Any] | None = None) -> None:
        if method == "reload_weights":
            assert "weights" in self.awake
            assert kwargs
            self.calls.append(("reload", len(list(kwargs["weights_iterator"]))))

    def set_weight_version(self, version: str) -> None:
        self.calls.append(("version", version))


def test_weights_wake_before_they_are_loaded_and_the_cache_after() -> None:
    engine: Any = object.__new__(VLLMEngine)
    engine.engine, engine.sleeps = Sleeper(), True
    weights = dict(llama(0).named_parameters())
    for version in (1, 2):
        engine.sleep()
        engine.load_weights(weights.items(), version)
    once = [("sleep", 2), ("wake up", "weights"), ("reload", len(weights)), ("wake up", "kv_cache")]
    assert engine.engine.calls == [*once, ("version", "1"), *once, ("version", "2")]
    assert not engine.engine.is_sleeping()
