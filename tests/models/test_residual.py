"""The float32 residual stream: it parts sampler and trainer less, and no model breaks."""

import pytest
import torch

from negaware.models.packed import packed_linears
from negaware.models.products import HAS_BFLOAT16_PRODUCTS
from negaware.models.residual import keep_residual_float32
from tiny_models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_come_closer_to_float32s(name: str) -> None:
    tokens = torch.randint(2, 40, (4, 24), generator=torch.Generator().manual_seed(0))

    def hidden(dtype: torch.dtype, wide: bool = False) -> torch.Tensor:
        model = MODELS[name](0).to(dtype)
        kept = keep_residual_float32(model) if wide else False
        assert kept == (wide and name != "gpt2")  # GPT-2's layer norms multiply the stream themselves
        assert keep_residual_float32(model) == kept if wide else True
        with torch.inference_mode():
            found = model.get_decoder()(tokens, use_cache=False).last_hidden_state
        assert found.dtype == dtype
        return found.float()

    exact, narrow, wide = hidden(torch.float32), hidden(torch.bfloat16), hidden(torch.bfloat16, wide=True)
    if name == "gpt2":
        assert torch.equal(wide, narrow)
    else:
        assert (wide - exact).norm() < (narrow - exact).norm()


def test_a_float32_model_is_left_alone() -> None:
    model = MODELS["llama"](0)
    assert not keep_residual_float32(model)
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.skipif(not HAS_BFLOAT16_PRODUCTS, reason="this CPU has no bfloat16 products")
def test_packed_linear_layers() -> None:
    """They give the same within the block, whatever the number of rows, and are as before after it."""
    layers = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 32, bias=False)).to(torch.bfloat16)
    for rows in ((1,), (7,), (3, 50)):
        inputs = torch.randn(*rows, 64).to(torch.bfloat16)
        with torch.inference_mode():
            expected = layers(inputs)
            with packed_linears(layers):
                assert "forward" in vars(layers[0])
                assert torch.allclose(layers(inputs).float(), expected.float(), atol=0.02)
            assert torch.equal(layers(inputs), expected)
    assert "forward" not in vars(layers[0])
