"""Both engines conform; the fast one says, token for token, what the obviously right one says."""

import copy
import random

import pytest
import torch
from conformance import EngineConformance, model, random_prompts
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig, RwkvConfig, RwkvForCausalLM

from negaware.models.cpu import decoder
from negaware.models.cpu.kernels import TorchKernels
from negaware.models.lora import has_adapters
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.rollout.reference import ReferenceEngine
from negaware.rollout.sampling import completion_uniforms, restrict
from rounding import exact_logprobs, exactly
from tiny_models import MODELS, SHAPE, VOCABULARY, adapted, network

__all__ = ["model"]  # the suite's fixture


class TestReferenceEngine(EngineConformance):
    @pytest.fixture(params=["llama", "gpt2", "gemma3"])
    def model(self, request):  # it has no code that could depend on the architecture: three are enough
        return MODELS[request.param](1)

    def make_engine(self, model, max_sequences=1):
        return ReferenceEngine(model)


class TestLocalEngine(EngineConformance):
    def make_engine(self, model, max_sequences=6):
        return LocalEngine(network(model), max_sequences)


class TestLocalEngineWithAdapters(EngineConformance):
    @pytest.fixture(params=["llama", "gpt2", "gemma3"])
    def model(self, request):
        return adapted(MODELS[request.param](1))

    def make_engine(self, model, max_sequences=6):
        return LocalEngine(network(model if has_adapters(model) else adapted(model)), max_sequences)


class TestLocalEngineWithoutACompiler(EngineConformance):
    @pytest.fixture(params=["llama", "qwen3"])
    def model(self, request):
        return MODELS[request.param](1)

    @pytest.fixture(autouse=True)
    def _no_compiler(self, monkeypatch):
        monkeypatch.setattr(decoder, "kernels_for", lambda *shape: TorchKernels())

    def make_engine(self, model, max_sequences=6):
        return LocalEngine(network(model), max_sequences)


@pytest.mark.parametrize("scenario", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 3))])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_without_a_compiler_local_equals_reference(name, scenario, monkeypatch):
    monkeypatch.setattr(decoder, "kernels_for", lambda *shape: TorchKernels())
    test_local_equals_reference(name, scenario)


def scenarios():
    """Scenario 0 for every model, 19 slow ones for two each, in turn."""
    turns = [(name, number) for number in range(1, 20) for name in [*MODELS][number % 3 :: 3]]
    return [*((name, 0) for name in MODELS), *(pytest.param(*turn, marks=pytest.mark.slow) for turn in turns)]


@pytest.mark.parametrize(("name", "scenario"), scenarios())
def test_local_equals_reference(name, scenario):
    """Long and short answers and prompts, few rows: columns are added, rows and prompts come, go and change places."""
    choose = random.Random(100 * scenario + 7)
    model = MODELS[name](scenario)
    lengths = [choose.choice((1, 2, 3, 7, 20, 90)) for _ in range(choose.randint(4, 8))]
    if scenario % 2:  # the longest prompts wait until all others have long been running
        lengths.sort()
    prompts = random_prompts(scenario, tuple(lengths))
    stop = tuple(choose.sample(range(VOCABULARY), choose.choice((0, 1, 3))))
    params = SamplingParams(
        max_new_tokens=choose.choice((20, 80, 130)),
        temperature=choose.choice((0.0, 0.7, 1.0, 1.5)),
        top_p=choose.choice((1.0, 0.8)),
        top_k=choose.choice((0, 20)),
        stop_token_ids=stop,
    )
    num_completions = choose.choice((1, 2))
    local = LocalEngine(network(model), max_sequences=choose.randint(3, 10)).generate(
        prompts, num_completions, params, scenario
    )
    reference = ReferenceEngine(model).generate(prompts, num_completions, params, scenario)
    answers, of_local, of_reference = [], [], []
    for prompt, group, expected_group in zip(prompts, local, reference, strict=True):
        for completion, expected in zip(group, expected_group, strict=True):
            pairs = enumerate(zip(completion.token_ids, expected.token_ids, strict=False))
            parted = next((index for index, (found, wanted) in pairs if found != wanted), None)
            assert completion.seed == expected.seed
            if parted is None:
                assert completion.token_ids.tolist() == expected.token_ids.tolist()
                assert completion.finish_reason == expected.finish_reason
            else:
                assert is_decided_by_rounding(model, [*prompt, *expected.token_ids[:parted]], params, expected, parted)
            answers.append((prompt, expected.token_ids[:parted]))
            of_local += completion.logprobs[:parted].tolist()
            of_reference += expected.logprobs[:parted].tolist()
    exact = exact_logprobs(model, answers, params.temperature or 1.0, restrict=restriction(params))
    exact.assert_near(of_local)
    exact.assert_near(of_reference)


def restriction(params):
    return lambda logits: restrict(logits, params.top_k, params.top_p) if params.temperature else logits


def is_decided_by_rounding(model, tokens, params, completion, index):
    """Whether a token's uniform number lies on the border of two tokens' shares (or the best two logits are equal)."""
    model = copy.deepcopy(model).double()

    def compute():
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[:, -1]
        if params.temperature == 0:
            return [logits[0]]
        return [restriction(params)(logits / params.temperature).softmax(-1)[0].cumsum(-1)]

    (exact,) = exactly(compute)
    if params.temperature == 0:
        best, second = exact.value.topk(2).values
        return best - second < 2 * exact.error
    uniform = completion_uniforms(completion.seed, params.max_new_tokens)[index]
    return (exact.value - uniform).abs().min() < exact.error


def test_a_long_prompt_enters_late():
    """Longer than all that were answered before it."""
    model = MODELS["llama"](0)
    prompts = random_prompts(0, (*(2,) * 40, 70))
    params = SamplingParams(max_new_tokens=8, temperature=0.7)
    local = LocalEngine(network(model), max_sequences=2).generate(prompts, 1, params, seed=0)
    reference = ReferenceEngine(model).generate(prompts, 1, params, seed=0)
    assert [c.token_ids.tolist() for g in local for c in g] == [c.token_ids.tolist() for g in reference for c in g]


@pytest.mark.parametrize("compiler", [True, False])
def test_local_in_bfloat16_is_as_near_to_float32_as_the_model(compiler, monkeypatch):
    """Over long answers, several blocks of columns: the log-probabilities that it reports, computed again."""
    if not compiler:
        monkeypatch.setattr(decoder, "kernels_for", lambda *shape: TorchKernels())
    exact = MODELS["llama"](0)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    engine = LocalEngine(network(rounded), max_sequences=4)
    prompts = random_prompts(1, (5, 30, 12))
    groups = engine.generate(prompts, 2, SamplingParams(max_new_tokens=150), seed=0)
    errors, errors_of_model = [], []
    for prompt, group in zip(prompts, groups, strict=True):
        for completion in group:
            tokens = torch.tensor([[*prompt, *completion.token_ids]])
            places, chosen = slice(len(prompt) - 1, -1), tokens[0, len(prompt) :, None]
            wanted, models_own = (
                model(tokens).logits[0, places].float().log_softmax(-1).gather(1, chosen)[:, 0].detach()
                for model in (exact, rounded)
            )
            errors += (torch.tensor(completion.logprobs) - wanted).abs().tolist()
            errors_of_model += (models_own - wanted).abs().tolist()
    assert len(errors) > 500
    assert sum(errors) < sum(errors_of_model)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: RwkvForCausalLM(RwkvConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2)), "recurrent"),
        (
            lambda: Gemma3nForCausalLM(
                Gemma3nTextConfig(
                    **SHAPE | {"num_hidden_layers": 4, "intermediate_size": 16},
                    num_kv_shared_layers=2,
                    hidden_size_per_layer_input=8,
                    vocab_size_per_layer_input=61,
                    layer_types=["full_attention"] * 4,
                    activation_sparsity_pattern=[0.0] * 4,
                )
            ),
            "shared",
        ),
    ],
)
def test_models_without_rows_of_keys_are_refused(model, kind):
    with pytest.raises(ValueError, match=f"layers of type {kind} don't keep keys and values of their own; use a model"):
        LocalEngine(network(model()))
