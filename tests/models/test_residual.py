"""The float32 residual stream: it parts sampler and trainer less, and no model breaks."""

import pytest
import torch

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
