"""The real vLLM in this process: it conforms, and no answer comes from stale weights. `make test-vllm` runs this."""

import shutil
import tempfile
import weakref

import pytest
import torch
from conformance import MAX_SEQUENCES, EngineConformance, model, random_prompts, trainer_logprobs
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

import tiny_models
from negaware.rollout.engine import SamplingParams
from negaware.rollout.options import VLLMOptions
from negaware.rollout.vllm import VLLMEngine
from tiny_models import MODELS, VOCABULARY, llama

__all__ = ["model"]  # the suite's fixture

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
OPTIONS = VLLMOptions(cache_gib=0.02)


def gpt2(seed: int) -> PreTrainedModel:
    """The suite's GPT-2 with heads as wide as vLLM's CPU kernels want them."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None, initializer_range=0.25))
    model.generation_config.pad_token_id = 0
    return model.eval()


@pytest.fixture(autouse=True, scope="module")
def _wide_heads():
    """vLLM's CPU kernels know heads of 32 and more; the suite's models have 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models.SHAPE, "head_dim", 32)
        patch.setitem(MODELS, "gpt2", gpt2)
        yield


def new_engine(model: PreTrainedModel, max_sequences: int = MAX_SEQUENCES) -> VLLMEngine:
    folder = tempfile.mkdtemp()
    try:
        model.save_pretrained(folder)
        return VLLMEngine(folder, "float32", 256, OPTIONS, max_sequences)
    finally:
        shutil.rmtree(folder)


class TestVLLMEngine(EngineConformance):
    engines: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    """One that was made from a model is used again for it: they take seconds to make."""

    def make_engine(self, model, max_sequences=MAX_SEQUENCES):
        engines = self.engines.setdefault(model, {})
        if max_sequences not in engines:
            engines[max_sequences] = new_engine(model, max_sequences)
        engines[max_sequences].load_weights(model.named_parameters(), version=0)
        return engines[max_sequences]
