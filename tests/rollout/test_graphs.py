"""The static decode step in an engine: it conforms as it is, and when it is frozen as a CUDA graph would freeze it."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from conformance import EngineConformance, model, random_prompts
from torch.utils._python_dispatch import TorchDispatchMode

from negaware.models.cuda import graphs
from negaware.models.cuda.graphs import COLUMN_BLOCK, ROW_BLOCK, attention_masks, bucket
from negaware.models.decoder import CudaDecoder
from negaware.models.description import describe
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.rollout.reference import ReferenceEngine
from rounding import exact_logprobs
from tiny_models import MODELS, WINDOW, each_model, llama, network

__all__ = ["model"]  # the suite's fixture


class GraphEngine(LocalEngine):
    """The local engine as it is on CUDA, here with steps that run as they are."""

    def __init__(self, model, max_sequences=6):
        decoder = CudaDecoder(model, shares_questions=False)
        self.graphs = decoder.rows
        self.graphs.grows = False
        super().__init__(replace(network(model), decoder=decoder), max_sequences)


class Recording(TorchDispatchMode):
    """Freezes a step as a CUDA graph does: every operation, on the very tensors that it had, no Python in between."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default, "a capture can't wait for a value"
        assert function is not torch.ops.aten.lift_fresh.default, "a capture can't read the host's memory"
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(*map(torch.utils._pytree.tree_leaves, (result, again)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def frozen(step):
    """A recorder for the CPU that warms up and captures like the one for CUDA."""
    step()
    with Recording() as recording:
        result = step()

    def replay():
        recording.replay()
        return result

    return replay


class TestGraphEngine(EngineConformance):
    def make_engine(self, model, max_sequences=6):
        return GraphEngine(model, max_sequences)


@pytest.mark.parametrize("name", each_model())
def test_frozen_steps_equal_the_reference(name, monkeypatch):
    """Nothing in a step is left to Python: rows come, go and change places, and buckets of both kinds change."""
    monkeypatch.setattr(graphs, "recorder_on", lambda device: frozen)
    model = MODELS[name](3)
    prompts = random_prompts(2, (2, 50, 7, 20, 3, 1, 12))
    params = SamplingParams(40, temperature=1.3, stop_token_ids=(4, 5))
    engine, reference = GraphEngine(model, max_sequences=ROW_BLOCK + 2), ReferenceEngine(model)
    for seed in (0, 1):  # the second call replays what the first has recorded
        found, expected = (each.generate(prompts, 2, params, seed) for each in (engine, reference))
        for prompt, group, expected_group in zip(prompts, found, expected, strict=True):
            assert [done.token_ids.tolist() for done in group] == [done.token_ids.tolist() for done in expected_group]
            exact = exact_logprobs(model, [(prompt, done.token_ids) for done in group], 1.3)
            exact.assert_near([logprob for done in group for logprob in done.logprobs])
    rows, columns = map(set, zip(*engine.graphs.steps, strict=True))
    assert (rows, columns) == ({8, 16}, {64, 128})


def test_replays_see_weights_that_are_updated_in_place_and_are_forgotten_when_they_move(monkeypatch):
    monkeypatch.setattr(graphs, "recorder_on", lambda device: frozen)
    model, params = llama(4), SamplingParams(10, temperature=0.0)
    prompts = random_prompts(10, (5, 3))
    engine = GraphEngine(model)
    engine.generate(prompts, 1, params, seed=0)
    steps = dict(engine.graphs.steps)

    engine.load_weights(llama(5).named_parameters(), version=1)
    assert [group[0].token_ids.tolist() for group in engine.generate(prompts, 1, params, seed=0)] == [
        group[0].token_ids.tolist() for group in ReferenceEngine(llama(5)).generate(prompts, 1, params, seed=0)
    ]
    assert engine.graphs.steps == steps

    for parameter, other in zip(model.parameters(), llama(6).parameters(), strict=True):
        parameter.data = other.data.double()
    assert [group[0].token_ids.tolist() for group in engine.generate(prompts, 1, params, seed=0)] == [
        group[0].token_ids.tolist() for group in ReferenceEngine(llama(6)).generate(prompts, 1, params, seed=0)
    ]
    assert not set(engine.graphs.steps.values()) & set(steps.values())


def test_the_stand_in_for_a_graph_is_as_strict():
    """It sees what tensors hold, not what Python does; what a capture can't do it refuses."""
    tensor, number = torch.zeros(2), [1]
    replay = frozen(lambda: tensor + number[0])
    tensor += 5
    number[0] = 100
    assert replay().tolist() == [6.0, 6.0]
    with pytest.raises(AssertionError, match="wait for a value"):
        frozen(lambda: tensor.sum().item())
    with pytest.raises(AssertionError, match="read the host"):
        frozen(lambda: tensor + torch.tensor([1.0]))


def test_cuda_is_asked_for_warm_ups_beside_then_one_capture_then_replays(monkeypatch):
    """With every name of torch.cuda replaced: whether a GPU does as it is asked is for a GPU to show."""
    log: list[str] = []

    class Stream:
        def __init__(self, device="outside"):
            self.device = device

        def wait_stream(self, other):
            log.append(f"{self.device} waits for {other.device}")

    class Graph:
        def replay(self):
            log.append("replay")

    @contextmanager
    def entered(what, **options):
        assert options in ({}, {"pool": "pool", "stream": recorder.stream})
        log.append("capture" if isinstance(what, Graph) else f"on {what.device}")
        yield
        log.append("end")

    fakes = {"Stream": Stream, "CUDAGraph": Graph, "graph": entered, "stream": entered}
    fakes |= {"graph_pool_handle": lambda: "pool", "current_stream": lambda device: Stream()}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = graphs.recorder_on(torch.device("cuda"))
    hidden = torch.zeros(1)
    replay = recorder(lambda: log.append("step") or hidden)
    warm_ups = ["on cuda", *["step"] * graphs.NUM_WARM_UPS, "end"]
    expected = ["cuda waits for outside", *warm_ups, "outside waits for cuda", "capture", "step", "end"]
    assert log == expected
    assert replay() is hidden is replay()
    assert log == [*expected, "replay", "replay"]


def test_room_is_kept_and_grows_at_the_beginning_of_a_call_only():
    engine, params = GraphEngine(llama(0), max_sequences=3), SamplingParams(8)
    engine.generate(random_prompts(0, (3, 4)), 1, params, seed=0)
    (stack,) = engine.graphs.stacks.values()
    assert stack.shape == (4, ROW_BLOCK, 2, COLUMN_BLOCK, 8)  # 2 layers' keys and values
    engine.generate(random_prompts(0, (40, 4)), 1, params, seed=0)
    assert engine.graphs.stacks[2, 8] is stack
    engine.generate(random_prompts(0, (60, 4)), 1, params, seed=0)
    assert engine.graphs.stacks[2, 8].shape == (4, ROW_BLOCK, 2, 2 * COLUMN_BLOCK, 8)


def test_what_an_earlier_call_left_does_no_harm():
    engine, prompts, params = GraphEngine(llama(0)), random_prompts(0, (3, 4)), SamplingParams(8)
    expected = engine.generate(prompts, 2, params, seed=0)
    with torch.inference_mode():
        for stack in engine.graphs.stacks.values():
            stack.fill_(torch.nan)
    assert engine.generate(prompts, 2, params, seed=0) == expected


def test_buckets_waste_less_than_a_quarter_and_are_few():
    for block in (ROW_BLOCK, COLUMN_BLOCK):
        sizes = [bucket(number, block) for number in range(1, 4097)]
        assert sizes == sorted(sizes)
        assert all(size >= number and size % block == 0 for number, size in enumerate(sizes, 1))
        assert all(size < 1.25 * number for number, size in enumerate(sizes, 1) if number > 4 * block)
        assert all(bucket(size, block) == size for size in sizes)
    assert sorted({bucket(number, ROW_BLOCK) for number in range(1, 129)}) == [*range(8, 65, 8), *range(80, 129, 16)]
    assert len({bucket(number, COLUMN_BLOCK) for number in range(1, 4097)}) == 20


def test_masks_are_transformers_own():
    """Position p sees columns up to p; a sliding layer the last few of them. One mask where all layers are alike."""
    columns, positions = torch.arange(10), torch.tensor([0, 4, 9])
    windows = {name: describe(MODELS[name](0)).windows for name in MODELS}
    assert windows["llama"] == windows["gpt2"] == windows["qwen3"] == {"full_attention": None}
    assert windows["mistral"] == {"sliding_attention": WINDOW}
    assert windows["gemma2"] == windows["gemma3"] == {"sliding_attention": WINDOW, "full_attention": None}
    masks = attention_masks(windows["gemma3"], columns, positions, None)
    seen = {kind: mask[:, 0, 0].int().tolist() for kind, mask in masks.items()}
    assert seen["full_attention"] == [[1] + [0] * 9, [1] * 5 + [0] * 5, [1] * 10]
    assert seen["sliding_attention"] == [[1] + [0] * 9, [1] * 5 + [0] * 5, [0] * 4 + [1] * 6]
    added = attention_masks(windows["mistral"], columns, positions, torch.bfloat16)
    assert (added.shape, added.dtype) == ((3, 1, 1, 10), torch.bfloat16)
    assert torch.equal(added == 0, masks["sliding_attention"])
    assert added.min() == torch.finfo(torch.bfloat16).min
