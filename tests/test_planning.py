"""The plan: bytes by hand for a tiny model, the recipes' totals, advice that holds, and autograd's own count."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from negaware.cli import main
from negaware.config import load_config
from negaware.models.cpu.decoder import FusedDecoder
from negaware.models.cpu.rows import RowDecoder
from negaware.models.cpu.shared_rows import SharedRows
from negaware.models.cuda.graphs import GraphDecoder
from negaware.models.parallel import recompute_activations
from negaware.models.residual import keep_residual_float32
from negaware.planning.advice import advice, applied, fits
from negaware.planning.cost import Seconds, Work
from negaware.planning.memory import activations, memory, rows_at_once, sequence_bytes
from negaware.planning.model import ModelShape
from negaware.planning.setting import GIB, Machine, Sampler, setting_of
from plan_settings import RECIPES, ROOT, recipe, tiny_setting
from tiny_models import llama
from tiny_run import tiny_config

EMBEDDING, ATTENTION = 10 * 32, 2 * 32 * 32 + 2 * 32 * 16
LAYER = ATTENTION + 3 * 32 * 64 + 2 * 32
PARAMETERS = 2 * EMBEDDING + 2 * LAYER + 32
"""Of tiny_run's model: two layers, 32 wide, an MLP of 64, 4 heads of 8 of which 2 have keys; 10 words, untied."""


def test_a_tiny_models_bytes_on_one_device(tmp_path: Path) -> None:
    setting = tiny_setting(tmp_path, rollout__max_prompt_tokens=3)
    assert setting.model.num_parameters == PARAMETERS
    assert setting.model.layer_parameters == LAYER
    held = memory(setting)
    assert sum(held.always.values()) == 12 * PARAMETERS  # in float32 the masters are the weights that compute
    training = dict(held.moments["training"])
    assert training.pop("gradients, float32") == 4 * PARAMETERS
    assert training.pop("weights side by side, as the CPU's products read them") == 4 * 2 * 32 * (64 + 2 * 64)
    # 128 tokens: in each layer the stream twice, queries, keys, values, attended, gate and up; the last norm's stream
    # and outcome; cosines and sines.
    assert training.pop("activations, kept") == 128 * (2 * 4 * (2 * 32 + 64 + 32 + 2 * 64) + 4 * (2 * 32) + 4 * 2 * 8)
    assert training.pop("gradients between layers") == 128 * 4 * (32 + 2 * 64)
    assert training.pop("hidden states of answer tokens, and their gradient") == 128 * 4 * 3 * 32
    assert training.pop("logits, a part of the vocabulary, and their gradient") == 128 * 10 * 8  # all ten words at once
    assert not training
    sampling = held.moments["sampling"]
    # 12 answers of 5 tokens that are read, and 2 questions of 3; two layers, keys and values, 2 heads of 8.
    assert sampling["keys and values of 12 answers"] == (12 * 5 + 2 * 3) * 2 * 2 * 2 * 8 * 4
    assert sampling["logits of a decode step"] == 2 * 4 * 12 * 10
    assert held.peak == held.total("training")


def test_a_tiny_models_bytes_on_four_gpus(tmp_path: Path) -> None:
    bfloat16 = {"training__compute_dtype": "bfloat16", "training__activations": "recomputed"}
    setting = tiny_setting(tmp_path, 4, "cuda", **bfloat16)
    held = memory(setting)
    always = dict(held.always)
    # What the local engine keeps: its copy, and buffers rounded up to 8 rows of 64 columns.
    assert always.pop("the sampler's copy of the weights") == 2 * PARAMETERS
    assert always.pop("keys and values of 6 answers") == 8 * 64 * 2 * 2 * 2 * 8 * 2
    assert sum(always.values()) == 12 * PARAMETERS // 4
    training = held.moments["training"]
    root = 2 * EMBEDDING + 32
    assert training["gradients, float32, 1/4"] == PARAMETERS
    assert training["embeddings and head, gathered, and the head's gradient"] == 2 * (root + EMBEDDING)
    assert training["two layers, gathered, and the buffer that gathers"] == 6 * LAYER
    assert training["a layer's gradients, and their float32 sums"] == 6 * LAYER
    one_layer = 2 * (2 * 4 + 2) * 32 + 2 * (64 + 32 + 4 * 64) + 4 * (4 + 2)
    assert training["activations, of one layer computed again"] == 128 * one_layer
    inputs = 128 * (2 * 4 * 32 + (8 + 2) * 32 + 2 * 2 * 8)
    assert training["activations, the layers' inputs"] == inputs
    assert held.moments["gradients outside the layers are summed"] == {
        "gradients, float32, 1/4": PARAMETERS,
        "embeddings and head, their gradients, and the float32 sums": 8 * root,
    }
    assert held.moments["sampling"] == {"logits of a decode step": 2 * 4 * 6 * 10}
    offloaded = memory(replace(setting, offload="cpu"))
    assert sum(offloaded.always.values()) == sum(held.always.values()) - 12 * PARAMETERS // 4
    assert offloaded.on_the_host == 16 * PARAMETERS // 4
    assert held.peak - offloaded.peak == 16 * PARAMETERS // 4


@pytest.mark.parametrize(("fused", "recomputed"), [(True, False), (False, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planned_activations_are_those_that_autograd_keeps(
    tmp_path: Path, fused: bool, recomputed: bool, dtype: str
) -> None:
    """Of a model a little wider than the tiniest, whose products can be bfloat16."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "head_dim": 16, "vocab_size": 300}
    model = llama(num_hidden_layers=3, **sizes)
    tiny_config(tmp_path)
    model.config.save_pretrained(tmp_path / "model")
    changes = {"training__compute_dtype": dtype, "training__activations": "recomputed" if recomputed else "kept"}
    setting = tiny_setting(tmp_path, training__micro_batch_tokens=256, **changes)
    setting.model.is_llama_like = fused
    model.to(getattr(torch, dtype))
    positions = torch.arange(256)
    if fused:
        decoder = FusedDecoder(model)
        decoder.recomputes = recomputed
        run = partial(decoder, positions, positions, decoder.attention_within(SharedRows(256, [256], [()])))
    else:
        assert keep_residual_float32(model) == (dtype == "bfloat16")
        run = partial(model.get_decoder(), input_ids=positions[None], position_ids=positions[None], use_cache=False)
        if recomputed:
            recompute_activations(model)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.shape[0] not in (128, 320):  # the fused products' own weights
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    parts = activations(setting)
    planned = sum(size for name, size in parts.items() if "activations" in name and "again" not in name)
    if recomputed:  # a checkpoint holds cosines and sines as arguments, where the hooks don't see them
        planned -= 256 * 2 * 16 * (4 if fused else setting.itemsize)
    last = out if fused else out.last_hidden_state
    kept[last.untyped_storage().data_ptr()] = last.nbytes
    assert sum(kept.values()) == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize("fused", [True, False])
def test_planned_keys_and_values_are_those_of_the_engine(tmp_path: Path, fused: bool) -> None:
    model = llama(vocab_size=10)
    tiny_config(tmp_path)
    model.config.save_pretrained(tmp_path / "model")
    limits = {"rollout__max_prompt_tokens": 5, "rollout__max_new_tokens": 130, "rollout__max_sequences": 16}
    setting = tiny_setting(tmp_path, rollout__completions=4, **limits)
    setting.model.is_llama_like = fused
    rows = RowDecoder(FusedDecoder(model)) if fused else GraphDecoder(model)
    with torch.inference_mode():
        rows.begin(16, 5, 130)
        rows.add_prompts([[1, 2, 3, 4, 5]] * 4, 4)
        for _ in range(129):
            rows.decode(torch.ones(16, dtype=torch.long))
    if isinstance(rows, RowDecoder):
        buffers = [*rows.prompt_states, *(part for block in rows.answer_states for part in block)]
    else:
        buffers = list(rows.stacks.values())
    planned = memory(setting).moments["sampling"]["keys and values of 16 answers"]
    assert planned == sum(buffer.nbytes for buffer in buffers)


def test_the_recipes_models() -> None:
    """Parameters as their model cards give them: 7.61 and 32.5 billion (31.0 without embeddings)."""
    small, large = (ModelShape(load_config(ROOT / f"configs/paper/nft_{size}.yaml", [
        "--model", str(ROOT / "configs/models" / name)
    ])) for size, name in RECIPES.items())  # fmt: skip
    assert (small.num_parameters, large.num_parameters) == (7_615_616_512, 32_763_876_352)
    assert small.num_parameters - 2 * small.head_parameters == pytest.approx(6.53e9, rel=0.01)
    assert large.num_parameters - 2 * large.head_parameters == pytest.approx(31.0e9, rel=0.01)
    assert large.cache_bytes(2) == 2 * 64 * 8 * 128 * 2


def test_a_32b_model_trains_on_16k_tokens_a_gpu() -> None:
    """What decision 0022 rests on: a whole answer fits, and memory grows with its tokens, not with their square."""
    setting = recipe("32b", 128)
    assert setting.tokens_at_once == setting.longest == 16_384
    assert memory(replace(setting, sampler=Sampler("vllm", 8))).total("training") < 48 * GIB
    twice = replace(setting, answer_tokens=2 * 16_384 - 2_048)
    grown = memory(twice).moments["training"]
    for name, size in memory(setting).moments["training"].items():
        assert grown[name] <= 2 * size
    assert not fits(replace(setting, activations="kept"), Machine())
    for tokens, does_fit in ((32_900, True), (33_000, False)):
        assert fits(replace(setting, answer_tokens=tokens - setting.prompt_tokens), Machine()) == does_fit


VLLM = "--rollout.engine.name vllm --rollout.engine.tensor_parallel"
CACHE = "--rollout.engine.cache_gib"
SMALLER, FEWER = "--training.micro_batch_tokens 8192", "--rollout.max_sequences 64"


@pytest.mark.parametrize(
    ("setting", "machine", "expected"),
    [
        (("7b", 32), 80, []),
        (("7b", 32, "--training.activations", "kept"), 80, ["--training.activations recomputed"]),
        (("7b", 8), 80, [SMALLER]),
        (("7b", 4), 80, [SMALLER, FEWER]),
        (("7b", 2), 80, [SMALLER, f"{VLLM} 1 {CACHE} 15.1"]),
        (("7b", 1), 80, [SMALLER, f"{VLLM} 1 {CACHE} 15.1", "--gpus 2"]),
        (("7b", 32, "--rollout.engine", "vllm", *SMALLER.split()), 28, [f"{VLLM} 1 {CACHE} 8.32"]),
        (("32b", 128, "--rollout.engine.cache_gib", "75"), 80, [f"{VLLM} 8 {CACHE} 32"]),
        (("32b", 128, "--rollout.engine.cache_gib", "0.25"), 80, [f"{VLLM} 8 {CACHE} 32"]),
        (("32b", 128, "--rollout.engine", "local"), 80, [f"{VLLM} 2 {CACHE} 38"]),
        (("32b", 128, "--rollout.engine", "local", "--rollout.questions", "48"), 80, [f"{VLLM} 2 {CACHE} 32"]),
        (("32b", 8, "--rollout.engine", "local"), 80, [f"{VLLM} 4 {CACHE} 33", "--gpus 16"]),
        (("32b", 128, "--rollout.engine", "local"), 24, None),
        (("32b", 16, "--rollout.max_new_tokens", "8192"), 40, ["--training.micro_batch_tokens 10240", "--gpus 128"]),
    ],
)
def test_the_advice_fits_as_it_is_typed_and_nothing_less_does(
    setting: tuple[Any, ...], machine: int, expected: list[str] | None
) -> None:
    before, gpu = recipe(*setting), Machine(machine * GIB)
    changes = advice(before, gpu)
    assert (changes is None) == (expected is None)
    if changes is None:
        return
    assert [str(change) for change in changes] == expected
    typed = " ".join(map(str, changes)).split()
    ranks = int(typed[typed.index("--gpus") + 1]) if "--gpus" in typed else before.ranks
    options = [word for change in changes if change.field != "ranks" for word in str(change).split()]
    size, _, *given = setting
    assert fits(recipe(size, ranks, *given, advised=options), gpu)
    for left_out in changes:
        assert not fits(applied(before, tuple(change for change in changes if change is not left_out)), gpu)


def test_vllm_has_room_for_an_answer_or_it_does_not_fit(capsys: pytest.CaptureFixture) -> None:
    """Half of a GPU of 24 GiB holds less than the 7B model; answers that don't fit together wait, so one is enough."""
    half = replace(recipe("7b", 32, "--rollout.engine", "vllm", *SMALLER.split()))
    assert memory(half, Machine(24 * GIB)).peak <= Machine(24 * GIB).usable
    assert not fits(half, Machine(24 * GIB))
    one = sequence_bytes(half)
    for cache, does_fit in ((one, True), (one - 1, False)):
        setting = replace(half, sampler=Sampler("vllm", cache=cache))
        assert rows_at_once(setting, Machine()) == 1
        assert fits(setting, Machine()) == does_fit
    command = ["plan", str(ROOT / "configs/paper/nft_32b.yaml"), "--gpus", "128", "--memory-gib", "80"]
    model = ["--model", str(ROOT / "configs/models/Qwen2.5-32B")]
    assert main([*command, *model, "--rollout.engine.cache_gib", "0.25"]) == 1
    said = "It doesn't fit: vLLM has 0.25 GiB for keys and values, and the longest answer takes 0.50.\nIt fits with"
    assert said in capsys.readouterr().out


def test_a_tiny_steps_operations(tmp_path: Path) -> None:
    """4 questions × 6 answers of 6 tokens, 2 optimizer steps: a question a row, 3 rows a micro-batch."""
    setting = tiny_setting(tmp_path)
    cut = Work(setting)
    assert (cut.answers_a_row, cut.row_tokens, cut.rows, cut.rows_together, cut.micro_batches) == (6, 36, 2, 3, 1)
    assert cut.forward == 2 * 2 * LAYER * 36
    assert cut.attention == 4 * 2 * 32 * 6 * 6**2 / 2
    assert cut.head == 8 * EMBEDDING * 36
    assert cut.row(setting) == 3 * cut.forward + 3.5 * cut.attention + cut.head
    assert setting.extra_passes == 0
    assert tiny_setting(tmp_path, objective="real", training__old_logprobs="recomputed").extra_passes == 2
    again = replace(setting, activations="recomputed", extra_passes=1)
    assert cut.row(again) == 5 * cut.forward + 5.5 * cut.attention + 1.25 * cut.head


def test_time_follows_the_machine() -> None:
    setting, machine = recipe("7b", 32), Machine()
    spent = Seconds(setting, machine)
    cut = Work(setting)
    assert (cut.answers_a_row, cut.rows, cut.micro_batches, cut.balance(32)) == (4, 128, 4, 1.0)
    assert spent.training == pytest.approx(16 * 4 * cut.row(setting) / (0.4 * 989e12))
    assert spent.communication == 0
    assert spent.handover == 2 * setting.model.num_parameters / 40e9
    slow = Seconds(setting, replace(machine, network=1e9))
    gathered = 16 * 4 * 8 * setting.model.num_parameters / 1e9
    assert slow.communication + slow.training == pytest.approx(gathered)
    again = Seconds(replace(setting, extra_passes=1), replace(machine, network=1e9))  # a forward pass more
    assert again.communication + again.training == pytest.approx(gathered * 10 / 8)
    assert Seconds(setting, replace(machine, bandwidth=machine.bandwidth / 2)).sampling > 1.9 * spent.sampling
    # Half the ranks, twice the micro-batches; a rank too many has nothing to do.
    assert Seconds(replace(setting, ranks=16), machine).training == pytest.approx(2 * spent.training)
    assert Work(replace(setting, ranks=256)).balance(256) == 0.5


def test_vllm_shares_weights_and_keys() -> None:
    setting = replace(recipe("32b", 128), sampler=Sampler("vllm", 8), max_sequences=256)
    assert setting.engines == 16
    held = memory(setting, Machine())
    weights, states = held.moments["sampling"].values()
    assert weights == 2 * setting.model.num_parameters // 8
    assert sequence_bytes(setting) == 16_384 * 2 * 64 * 128 * 2  # one head of keys and values a GPU
    assert states % sequence_bytes(setting) == 0
    given = memory(replace(setting, sampler=Sampler("vllm", 8, cache=9 * GIB)), Machine()).moments["sampling"]
    assert given["keys and values of 18 answers"] == 9 * GIB
    assert held.total("sampling") <= Machine().usable < held.total("sampling") + sequence_bytes(setting)


def test_adapters_alone_are_trained(tmp_path: Path) -> None:
    """The model's weights in bfloat16 and nothing more of them; 16 bytes of each adapter's; a third less work."""
    config = load_config(ROOT / "configs/paper/nft_7b.yaml", ["--model", str(ROOT / "configs/models/Qwen2.5-Math-7B")])
    adapted = load_config(
        ROOT / "configs/paper/nft_7b.yaml",
        ["--model", str(ROOT / "configs/models/Qwen2.5-Math-7B"), "--model.lora.rank", "8", "--rollout.engine", "vllm"],
    )
    whole, lora = setting_of(config, 8, "cuda"), setting_of(adapted, 8, "cuda")
    in_layer = 2 * (3584 + 3584) + 2 * (3584 + 512) + 3 * (3584 + 18944)  # of q and o, k and v, the MLP's three
    assert lora.model.num_trained == 28 * 8 * in_layer
    always = memory(lora).always
    assert [*always.values()] == [
        2 * whole.model.num_parameters // 8,
        4 * lora.model.num_trained // 8,
        8 * lora.model.num_trained // 8,
    ]
    assert lora.sampler.name == "vllm"
    assert Work(lora).head == 0.75 * Work(whole).head
