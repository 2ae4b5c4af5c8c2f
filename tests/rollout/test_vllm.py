"""The real vLLM in this process: it conforms, and no answer comes from stale weights. `make test-vllm` runs this."""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from conformance import MAX_SEQUENCES, EngineConformance, assert_logprobs_are_the_models, model, random_prompts
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
    engines: ClassVar[dict[int, tuple[PreTrainedModel, dict[int, VLLMEngine]]]] = {}
    """One that was made from a model is used again for it: they take seconds to make."""

    @pytest.fixture(autouse=True)
    def _go_together(self):
        """With one engine vLLM takes down what all of the process's engines share."""
        if len(self.engines) > 8:
            self.engines.clear()
            gc.collect()

    def make_engine(self, model, max_sequences=MAX_SEQUENCES):
        _, engines = self.engines.setdefault(id(model), (model, {}))
        if max_sequences not in engines:
            engines[max_sequences] = new_engine(model, max_sequences)
        engines[max_sequences].load_weights(model.named_parameters(), version=0)
        return engines[max_sequences]


class TestStaleWeights:
    """Long prompts with long common beginnings: all but a prompt's last block of keys and values is found again."""

    PROMPTS: ClassVar = [[*random_prompts(20, (70,))[0], *ending] for ending in random_prompts(21, (5, 9))]
    PARAMS = SamplingParams(16, stop_token_ids=(1, 2))

    @pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3"])  # a head of its own, a tied one, a sliding window
    def test_no_answer_comes_from_the_weights_before(self, name):
        old, new = MODELS[name](8), MODELS[name](9)
        engine = new_engine(old)
        before = [engine.generate(self.PROMPTS, 3, self.PARAMS, seed) for seed in (0, 1)]
        engine.sleep()  # does nothing here; on a GPU it drops the weights
        engine.load_weights(new.named_parameters(), version=7)
        after = engine.generate(self.PROMPTS, 3, self.PARAMS, 0)
        assert {span.version for groups in before for group in groups for c in group for span in c.spans} == {0}
        assert {span.version for group in after for c in group for span in c.spans} == {7}
        assert tokens(after) == tokens(new_engine(new).generate(self.PROMPTS, 3, self.PARAMS, 0)) != tokens(before[0])
        assert_logprobs_are_the_models(new, self.PROMPTS, after)

    def test_the_answers_to_a_question_share_its_keys_and_values(self):
        """Otherwise the test above would prove nothing of the prefix cache."""
        engine = new_engine(llama(8))
        told = []
        step = engine.engine.step
        engine.engine.step = lambda: told.extend(outputs := step()) or outputs
        engine.generate(self.PROMPTS, 3, self.PARAMS, 0)
        assert sum(output.num_cached_tokens == 64 for output in told if output.finished) == 5  # all but the first

    def test_bfloat16_engines_round_what_the_trainer_hands_over(self):
        model = llama(8)
        folder = tempfile.mkdtemp()
        model.save_pretrained(folder)
        engine = VLLMEngine(folder, "bfloat16", 256, OPTIONS, MAX_SEQUENCES)
        engine.load_weights(llama(9).named_parameters(), version=1)
        from_float32 = engine.generate(self.PROMPTS, 2, self.PARAMS, 0)
        engine.load_weights(llama(9).to(torch.bfloat16).named_parameters(), version=1)
        assert engine.generate(self.PROMPTS, 2, self.PARAMS, 0) == from_float32
        shutil.rmtree(folder)

    @pytest.mark.parametrize("missing", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
    def test_a_weight_that_was_not_taken_is_named(self, missing):
        engine = new_engine(llama(8))
        new = {name: weight for name, weight in llama(9).named_parameters() if name != missing}
        with pytest.raises(ValueError, match=rf"vLLM did not take all new weights \(.*{missing}"):
            engine.load_weights(new.items(), version=1)


def tokens(groups):
    return [[completion.token_ids.tolist() for completion in group] for group in groups]


def test_a_cache_too_small_is_named():
    engine = new_engine(llama(0))
    with pytest.raises(ValueError, match=r"has 600 tokens.*at most 512; raise rollout.engine.cache_gib"):
        engine.generate([[1] * 300], 1, SamplingParams(300), 0)
    (group,) = engine.generate([[1] * 300], 1, SamplingParams(300, max_tokens=304), 0)
    assert [completion.num_tokens for completion in group] == [4]


def test_a_model_that_vllm_cannot_load_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"vLLM can't load the model '.*': .{30,}"):
        VLLMEngine(str(tmp_path), "float32", 256, OPTIONS, 4)
    llama(0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["NoSuchForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"vLLM can't load the model '.*': .*NoSuchForCausalLM"):
        VLLMEngine(str(tmp_path), "float32", 256, OPTIONS, 4)


def test_a_cache_without_room_for_a_token_is_named(tmp_path):
    llama(0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"doesn't hold even one token; raise rollout\.engine\.cache_gib, or"):
        VLLMEngine(str(tmp_path), "float32", 256, VLLMOptions(cache_gib=1e-6), 4)


def test_another_version_is_refused(monkeypatch):
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    with pytest.raises(ValueError, match=r"is version 0.33.1; negaware was tested with vllm>=0.32,<0.33: install that"):
        new_engine(llama(0))


def on_two_ranks(model: PreTrainedModel, tensor_parallel: int, folder: Path) -> list[dict]:
    """What each of two ranks sampled, by prompt."""
    model.save_pretrained(folder / "model")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("vllm_ranks.py")
    ended = subprocess.run(
        [*command, script, folder / "model", str(tensor_parallel), folder],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_sample_apart_and_together(tmp_path):
    """An engine a rank, each with its share, and both ranks as one engine: the answers of one engine alone."""
    model = MODELS["qwen3"](4)
    for name in ("apart", "together"):
        (tmp_path / name).mkdir()
    apart = on_two_ranks(model, 1, tmp_path / "apart")
    together = on_two_ranks(model, 2, tmp_path / "together")
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 1.1
    engine = new_engine(model)
    alone = engine.generate([[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]], 2, SamplingParams(12, stop_token_ids=(1, 2)), seed=5)
    assert [found["total"] for found in apart + together] == [3.0] * 4
    assert [list(found["groups"]) for found in apart] == [["0", "2"], ["1"]]
    assert len({found["shared_memory"] for found in together}) == 1
    assert re.fullmatch("[0-9a-f]{8}", together[0]["shared_memory"]), "a name that no other run has"
    expected = {str(index): [done.token_ids.tolist() for done in group] for index, group in enumerate(alone)}
    for groups in (apart[0]["groups"] | apart[1]["groups"], together[0]["groups"], together[1]["groups"]):
        assert {index: [done["token_ids"] for done in group] for index, group in groups.items()} == expected
        assert {span[0] for group in groups.values() for done in group for span in done["spans"]} == {3}


def test_tensor_parallel_needs_ranks():
    with pytest.raises(
        ValueError, match="tensor_parallel is 2, but there are 1 ranks; start a multiple of 2 with torch"
    ):
        VLLMEngine("nowhere", "float32", 256, VLLMOptions(tensor_parallel=2), 4)
