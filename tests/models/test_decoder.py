"""The fused decoder against the transformers model whose parameters it reads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from negaware.models.decoder import FusedDecoder, fused_decoder_of
from negaware.models.shared_rows import SharedRows
from negaware.training.optimizer import MasterOptimizer
from negaware.training.options import TrainingOptions
from tiny_models import MODELS, SHAPE, llama


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


OTHERS: dict[str, Callable[[int], PreTrainedModel]] = {
    **{name: MODELS[name] for name in ("gpt2", "mistral", "gemma2", "gemma3")},
    "granite": granite,
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


def make_tokens() -> torch.Tensor:
    return torch.randint(2, 40, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILY)
def test_values_and_gradients_are_the_models_own(name: str) -> None:
    model, tokens = FAMILY[name](0), make_tokens()
    decoder = fused_decoder_of(model)
    assert decoder is not None
    assert fused_decoder_of(model) is decoder
    parameters = list(model.get_decoder().parameters())
    upstream = torch.randn(3, 17, 32)

    expected = model.get_decoder()(tokens, use_cache=False).last_hidden_state
    wanted = torch.autograd.grad((expected * upstream).sum(), parameters)
    found = hidden_states(decoder, tokens)
    gradients = torch.autograd.grad((found * upstream).sum(), parameters)
    assert torch.allclose(found, expected, atol=2e-5)
    for gradient, other in zip(gradients, wanted, strict=True):
        assert torch.allclose(gradient, other, atol=1e-5 * float(other.abs().max() + 1))
    with torch.inference_mode():
        assert torch.allclose(hidden_states(decoder, tokens), expected, atol=2e-5)


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


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_computes_something_else_is_left_to_transformers(name: str) -> None:
    assert fused_decoder_of(OTHERS[name](0)) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sampling", [True, False])
def test_changed_weights_are_noticed(dtype: str, sampling: bool) -> None:
    """Joined and rearranged copies of the weights never outlive them, however they change."""
    model, tokens = llama(0), make_tokens()
    optimizer = MasterOptimizer(model, TrainingOptions(compute_dtype=dtype, learning_rate=0.1), num_steps=1)
    decoder = fused_decoder_of(model)
    assert decoder is not None

    def hidden() -> torch.Tensor:
        with torch.inference_mode(sampling), torch.set_grad_enabled(not sampling):
            return hidden_states(decoder, tokens).clone()

    def in_place() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)

    def in_inference_mode() -> None:
        with torch.inference_mode():
            for parameter in model.parameters():
                parameter.copy_(parameter * 0.9)

    def by_the_optimizer() -> None:
        for master in optimizer.masters.values():
            master.grad = torch.randn_like(master)
        optimizer.step(torch.ones(()))

    def replaced() -> None:
        for parameter in model.parameters():
            parameter.data = parameter.data * 0.9

    for change in (in_place, in_inference_mode, by_the_optimizer, replaced):
        before = hidden()
        change()
        after = hidden()
        fresh = hidden_states(FusedDecoder(model), tokens)
        assert not torch.equal(after, before), change
        assert torch.allclose(after.float(), fresh.float(), atol=0.1 if dtype == "bfloat16" else 1e-5), change
