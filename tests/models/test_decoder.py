"""The fused decoder against the transformers model whose parameters it reads."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from negaware.models.cpu.decoder import FusedDecoder
from negaware.models.cpu.products import HAS_BFLOAT16_PRODUCTS
from negaware.models.cpu.shared_rows import SharedRows
from negaware.models.family import fused_decoder_of
from negaware.models.load import compute_dtype
from negaware.objectives import OBJECTIVES
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from rounding import exact_logprobs, exactly
from tiny_models import MODELS, SHAPE, llama, network
from training.made_groups import make_group, sampled_groups


def qwen2(seed: int, **changes: Any) -> PreTrainedModel:
    """Biases at queries, keys and values."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE | changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


def scaled_rotation(seed: int) -> PreTrainedModel:
    return llama(seed, rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0})


FAMILY: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": llama,
    "yarn": scaled_rotation,
    "qwen2": qwen2,
    "qwen3": MODELS["qwen3"],
}


def granite(seed: int) -> PreTrainedModel:
    """Has the family's parts, and multiplies what they give."""
    return GraniteForCausalLM(GraniteConfig(**SHAPE, residual_multiplier=0.3)).eval()


def smollm3(seed: int) -> PreTrainedModel:
    """Has the family's parts, and layers without positions."""
    torch.manual_seed(seed)
    return SmolLM3ForCausalLM(SmolLM3Config(**SHAPE, no_rope_layers=[1, 0], use_sliding_window=False)).eval()


def precise_norms(seed: int) -> PreTrainedModel:
    model = llama(seed).bfloat16()
    model.model.norm.float()
    return model


OTHERS: dict[str, Callable[[int], PreTrainedModel]] = {
    "float32 norms in bfloat16": precise_norms,
    **{name: MODELS[name] for name in ("gpt2", "mistral", "gemma2", "gemma3")},
    "granite": granite,
    "gemma": lambda seed: GemmaForCausalLM(GemmaConfig(**SHAPE)).eval(),
    "olmo": lambda seed: OlmoForCausalLM(OlmoConfig(**{name: SHAPE[name] for name in SHAPE if name != "head_dim"})),
    "float64": lambda seed: llama(seed).double(),
    "smollm3": smollm3,
    "biased MLP": lambda seed: llama(seed, mlp_bias=True),
    "another activation": lambda seed: llama(seed, hidden_act="gelu"),
    "a sliding window": lambda seed: qwen2(
        seed, use_sliding_window=True, sliding_window=4, max_window_layers=0, layer_types=["sliding_attention"] * 2
    ),
}


def hidden_states(decoder: FusedDecoder, tokens: torch.Tensor) -> torch.Tensor:
    rows, width = tokens.shape
    within = decoder.attention_within(SharedRows(width, [width] * rows, [()] * rows))
    return decoder(tokens.flatten(), torch.arange(width).repeat(rows), within).unflatten(0, (rows, width))


def products_of(decoder: FusedDecoder) -> list[Any]:
    return [part for layer in decoder.layers for part in (layer.inputs, layer.output, layer.gates, layer.down)]


def make_tokens() -> torch.Tensor:
    return torch.randint(2, 40, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILY)
def test_values_and_gradients_are_the_models_own(name: str) -> None:
    model, tokens = FAMILY[name](0), make_tokens()
    decoder = fused_decoder_of(model)
    assert decoder is not None
    upstream = torch.randn(3, 17, 32)
    double = copy.deepcopy(model).double()

    def computed(model: PreTrainedModel, hidden: torch.Tensor) -> list[torch.Tensor]:
        loss = (hidden * upstream.to(hidden.dtype)).sum()
        return [hidden, *torch.autograd.grad(loss, list(model.get_decoder().parameters()))]

    exact = exactly(lambda: computed(double, double.get_decoder()(tokens, use_cache=False).last_hidden_state))
    for one, found in zip(exact, computed(model, hidden_states(decoder, tokens)), strict=True):
        one.assert_near(found)
    with torch.inference_mode():
        exact[0].assert_near(hidden_states(decoder, tokens))


@pytest.mark.parametrize("name", FAMILY)
def test_in_bfloat16_it_is_closer_to_float32_than_the_model(name: str) -> None:
    tokens = make_tokens()
    exact = FAMILY[name](0).get_decoder()(tokens, use_cache=False).last_hidden_state
    model = FAMILY[name](0).bfloat16()
    decoder = fused_decoder_of(model)
    assert decoder is not None
    training = hidden_states(decoder, tokens)
    assert training.dtype == torch.bfloat16
    with torch.inference_mode():
        error = (model.get_decoder()(tokens, use_cache=False).last_hidden_state - exact).norm()
        for found in (training, hidden_states(decoder, tokens)):
            assert (found - exact).norm() < error


def test_another_attention_dtype_or_part_is_left_to_transformers() -> None:
    model = llama(0)
    model.set_attn_implementation("eager")
    assert fused_decoder_of(model) is None
    model.set_attn_implementation("sdpa")
    assert fused_decoder_of(model) is not None
    model.double()
    assert fused_decoder_of(model) is None
    model.float().model.layers[0].mlp.up_proj = torch.nn.Sequential(model.model.layers[0].mlp.up_proj)
    assert fused_decoder_of(model) is None


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_computes_something_else_is_left_to_transformers(name: str) -> None:
    assert fused_decoder_of(OTHERS[name](0)) is None


def changed_in_place(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)


def changed_behind_autograd(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def changed_by_an_optimizer(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    torch.optim.AdamW(model.parameters(), lr=0.1, fused=True).step()


def replaced(model: PreTrainedModel) -> None:
    decoder = model.get_decoder()
    decoder.load_state_dict({name: weight * 0.9 for name, weight in decoder.state_dict().items()}, assign=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [changed_in_place, changed_behind_autograd, changed_by_an_optimizer, replaced])
def test_no_copy_of_a_weight_outlives_it(change: Callable[[PreTrainedModel], None], dtype: torch.dtype) -> None:
    """The engine samples with the weights as they are at each call, the trainer trains those of each step."""
    model, params = llama(0).to(dtype), SamplingParams(12, temperature=0.0)
    engine = LocalEngine(network(model))
    before = engine.generate([[5, 6, 7], [9]], 1, params, seed=0)
    change(model)
    after = engine.generate([[5, 6, 7], [9]], 1, params, seed=0)
    fresh = LocalEngine(network(copy.deepcopy(model)))
    assert after == fresh.generate([[5, 6, 7], [9]], 1, params, seed=0) != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampler_and_trainer_follow_the_optimizer(dtype: str) -> None:
    """In float32 it changes the very memory that the model computes with."""
    model = llama(0)
    options = TrainingOptions(compute_dtype=dtype, learning_rate=0.02, optimizer_steps=1)
    ready = network(model, getattr(torch, dtype))
    trainer = Trainer(ready, LossSettings(OBJECTIVES["nft"], {}, 1.0, 12), options, num_steps=10)
    engine, first = LocalEngine(ready), []
    for seed in range(4):
        (completions,) = engine.generate([[1, 2, 3]], 8, SamplingParams(12), seed)
        first.append(completions[0].logprobs[0])
        answers = [((1, 2, 3), done.token_ids) for done in completions]
        allowed = exact_logprobs(model, answers, unit=torch.finfo(getattr(torch, dtype)).eps / 2).mean_difference()
        metrics = trainer.step([make_group([1, 2, 3], completions, [True, False] * 4)], seed=0)
        assert metrics["train/sampler_difference"] < allowed
    assert len(set(first)) == 4


def test_what_the_trainer_computes_again_is_what_it_trains_on() -> None:
    """To the bit, so that the ratio of an on-policy token is 1 and not 1 but for rounding."""
    model = llama(0)
    options = TrainingOptions(old_logprobs="recomputed", micro_batch_tokens=64, optimizer_steps=1)
    ready = network(model, compute_dtype("auto"))
    trainer = Trainer(ready, LossSettings(OBJECTIVES["nft"], {}, 1.0, 12), options, num_steps=10)
    metrics = trainer.step(sampled_groups(model), seed=0)
    assert metrics["train/loss"] == 0
    assert metrics["train/grad_norm"] > 0


def test_what_sampling_made_goes_when_training_begins() -> None:
    model = llama(0).bfloat16()
    ready = network(model)
    fused = ready.decoder
    assert isinstance(fused, FusedDecoder)
    LocalEngine(ready).generate([[5, 6, 7]], 2, SamplingParams(4), seed=0)
    assert any(layer.gates.packed is not None for layer in fused.layers) == HAS_BFLOAT16_PRODUCTS
    fused.refresh()
    hidden_states(fused, make_tokens()).float().sum().backward()
    assert all(product.packed is None for product in products_of(fused))


def test_looking_at_a_model_leaves_no_copies_of_its_weights() -> None:
    """They would be float32 beside weights that the trainer makes bfloat16 next."""
    decoder = fused_decoder_of(llama(0))
    assert decoder is not None
    assert all(product.joined is None and product.packed is None for product in products_of(decoder))
