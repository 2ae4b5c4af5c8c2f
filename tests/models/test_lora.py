"""LoRA against peft itself: what adapters compute and what of them is trained; merged, they are the same model."""

import copy
import weakref
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from test_load_policy import make_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from negaware import libraries
from negaware.models import lora
from negaware.models.cpu.shared_rows import SharedRows
from negaware.models.family import fused_decoder_of
from negaware.models.load import Policy, load_policy
from negaware.models.logprobs import head_of, token_logprobs
from negaware.models.lora import add_adapters, merged_weight, merged_weights
from negaware.models.options import LoraOptions
from negaware.models.save import save_model
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from rounding import exactly, gamma
from tiny_models import ALPHA, LORA, MODELS, RANK, adapted, adapters, gemma4, llama, network

TOKENS = torch.randint(2, 40, (1, 17), generator=torch.Generator().manual_seed(0))


def assert_same_logits(*models: torch.nn.Module) -> None:
    """They are those of the last but for rounding, which merging does once more."""
    double = copy.deepcopy(models[-1]).double()
    (exact,) = exactly(lambda: [double(TOKENS).logits])
    for model in models:
        exact.assert_near(model(TOKENS).logits, times=2)


# peft asks transformers by a name of yesterday
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.mark.parametrize("name", MODELS)
def test_new_adapters_change_nothing_and_alone_are_trained(name: str) -> None:
    base, model = MODELS[name](0), adapted(MODELS[name](0), trained=False)
    assert torch.equal(model(TOKENS).logits, base(TOKENS).logits)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == set(adapters(model))
    assert not torch.equal(adapted(MODELS[name](0))(TOKENS).logits, base(TOKENS).logits)


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "v_proj"), ("o_proj", "down_proj"), ("gate_proj",)])
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_fused_decoders_gradients_are_those_of_pefts_own_model(name: str, targets: tuple[str, ...]) -> None:
    """Of log-probabilities on the same tokens; and no frozen weight gets any."""
    options = LoraOptions(rank=RANK, alpha=ALPHA, targets=targets)
    model = adapted(MODELS[name](0), options)
    wanted = "all-linear" if targets == ("all-linear",) else list(targets)
    pefts = get_peft_model(MODELS[name](0), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=wanted)).eval()
    own = {name.removeprefix("base_model.model."): parameter for name, parameter in pefts.named_parameters()}
    with torch.no_grad():
        for name_, parameter in adapters(model).items():
            own[name_].copy_(parameter)

    pefts.double()
    upstream, named = torch.randn(16), {key: one for key, one in own.items() if one.requires_grad}

    def compute() -> list[torch.Tensor]:
        logits = pefts(TOKENS).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, TOKENS[0, 1:, None])[:, 0]
        return [expected, *torch.autograd.grad((expected * upstream.double()).sum(), list(named.values()))]

    logprobs, *exact = exactly(compute)
    gradients = dict(zip(named, exact, strict=True))

    decoder = fused_decoder_of(model)
    assert decoder is not None
    within = decoder.attention_within(SharedRows(17, [17], [()]))
    hidden = decoder(TOKENS[0], torch.arange(17), within)[:-1]
    found, _ = token_logprobs(hidden, head_of(model), TOKENS[0, 1:])
    (found * upstream).sum().backward()

    logprobs.assert_near(found)
    for name_, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None
        else:
            gradients[name_].assert_near(parameter.grad)
            assert gradients[name_].value.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_merged_weights_are_pefts(name: str) -> None:
    model = adapted(MODELS[name](0))
    merged = dict(merged_weights(model))
    base = MODELS[name](0)
    assert list(merged) == [key for key, _ in base.named_parameters()]
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2"
    )
    pefts = PeftModel(base, config).eval()
    with torch.no_grad():
        own = {key.removeprefix("base_model.model."): parameter for key, parameter in pefts.named_parameters()}
        for key, parameter in adapters(model).items():
            own[key].copy_(parameter)
    largest = max(parameter.abs().max() for parameter in adapters(model).values())
    for key, weight in pefts.merge_and_unload().named_parameters():
        # Both are a weight and a sum of RANK products, scaled: γ(RANK + 3) times the largest that these can be.
        sizes = weight.abs().max() + 2 * ALPHA * largest**2
        assert (merged[key] - weight).abs().max() <= 2 * gamma(RANK + 3) * sizes, key
    plain = MODELS[name](0)
    assert all(
        weight is parameter for (_, weight), parameter in zip(merged_weights(plain), plain.parameters(), strict=True)
    )


def test_merged_weights_are_written_one_at_a_time(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a model that just fits can be saved."""
    made: list[weakref.ref[torch.Tensor]] = []

    def merged(layer: Any) -> torch.Tensor:
        assert all(weight() is None for weight in made), "an earlier weight is still held"
        weight = merged_weight(layer)
        made.append(weakref.ref(weight))
        return weight

    policy = trained_policy(base, torch.float32)
    monkeypatch.setattr(lora, "merged_weight", merged)
    save_model(policy, tmp_path / "merged", torch.float32)
    assert len(made) == 2 * 7  # all products of two layers


def test_a_weight_kept_in_float32_is_saved_so(tmp_path: Path) -> None:
    """transformers keeps some in float32 beside bfloat16 ones."""
    llama(0).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    policy = trained_policy(tmp_path / "base", torch.bfloat16)
    policy.model.model.norm.float()
    save_model(policy, tmp_path / "merged", torch.bfloat16)
    saved = load_file(tmp_path / "merged/model.safetensors")
    assert saved["model.norm.weight"].dtype == torch.float32
    assert saved["lm_head.weight"].dtype == torch.bfloat16
    assert "LlamaForCausalLM" in (tmp_path / "merged/config.json").read_text()


@pytest.mark.filterwarnings("ignore:.*pattern keys did not match any targeted module:RuntimeWarning")
def test_experts_that_could_not_be_merged_are_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MixtralConfig(**sizes, num_hidden_layers=1, vocab_size=61, num_local_experts=4)
    add_adapters(MixtralForCausalLM(config), LoraOptions(targets=("q_proj",)), "base")
    with pytest.raises(ValueError, match=r"adapters on model.layers.0.mlp\S* of Mixtral\w* could not be merged"):
        add_adapters(MixtralForCausalLM(config), LoraOptions(), "base")


def test_a_constant_in_the_models_files_stays_there(tmp_path: Path) -> None:
    gemma4(0).save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    policy = trained_policy(tmp_path / "base", torch.float32)
    save_model(policy, tmp_path / "merged", torch.float32)
    again, handed = (load_policy(str(tmp_path / name), torch.float32).model for name in ("merged", "base"))
    handed.model.layers[0].layer_scalar.fill_(1)
    LocalEngine(network(handed)).load_weights(merged_weights(policy.model), version=1)
    for model in (again, handed):
        assert model.model.layers[0].layer_scalar == 0.5
        assert_same_logits(model, policy.model)


def test_an_engine_with_weights_of_its_own_samples_what_the_adapted_model_does() -> None:
    model, params = adapted(llama(0)), SamplingParams(20, temperature=1.0)
    engine = LocalEngine(network(llama(3)))
    engine.load_weights(merged_weights(model), version=4)
    groups, expected = (
        one.generate([[5, 6, 7], [9, 8]], 3, params, seed=0) for one in (engine, LocalEngine(network(model)))
    )
    assert [c.token_ids.tolist() for g in groups for c in g] == [c.token_ids.tolist() for g in expected for c in g]
    assert {span.version for g in groups for c in g for span in c.spans} == {4}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    llama(0).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def trained_policy(base: Path, dtype: torch.dtype, **options: Any) -> Policy:
    policy = load_policy(str(base), dtype, lora=LoraOptions(rank=RANK, alpha=ALPHA, **options))
    torch.manual_seed(1)
    for parameter in policy.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_merged_or_as_adapters_it_is_the_same_model(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    params, prompts = SamplingParams(24, temperature=0.0), [[5, 6, 7], [9]]
    said, merged = [], []
    for kind in ("merged", "adapter"):
        policy = trained_policy(base, dtype, save=kind)
        save_model(policy, tmp_path / kind, dtype)
        again = load_policy(str(tmp_path / kind), dtype)
        merged.append(dict(merged_weights(policy.model)))
        assert {key: parameter.dtype for key, parameter in again.model.named_parameters()} == dict.fromkeys(
            merged[0], dtype
        )
        assert all(torch.equal(parameter, merged[0][key]) for key, parameter in again.model.named_parameters())
        assert again.codec.stop_token_ids == policy.codec.stop_token_ids
        said += [LocalEngine(one.network).generate(prompts, 1, params, seed=0) for one in (policy, again)]
    tokens = [[completion.token_ids.tolist() for (completion,) in groups] for groups in said]
    assert tokens[1:] == tokens[:-1]
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "generation_config.json"}
    assert not names & {"config.json", "model.safetensors"}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)
    assert all(torch.equal(parameter, merged[0][key]) for key, parameter in plain.named_parameters())


def test_peft_and_transformers_load_the_adapter_folder(base: Path, tmp_path: Path) -> None:
    policy = trained_policy(base, torch.float32, save="adapter")
    folder = tmp_path / "adapter"
    save_model(policy, folder, torch.float32)
    expected = policy.model(TOKENS).logits
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    for loaded in (
        by_hand,
        AutoPeftModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    ):
        assert torch.equal(loaded.eval()(TOKENS).logits, expected)


def test_adapters_that_peft_made_are_loaded_merged(base: Path, tmp_path: Path) -> None:
    """Of another kind than those that are trained here, beside a head of their own."""
    config = LoraConfig(r=3, lora_alpha=5, use_dora=True, use_rslora=True, target_modules=["q_proj", "down_proj"])
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            torch.nn.init.uniform_(parameter, 0.1, 0.5)
    theirs.save_pretrained(tmp_path / "adapter")
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    found = load_policy(str(tmp_path / "adapter"), torch.float32).model
    assert [key for key, _ in found.named_parameters()] == [key for key, _ in llama(0).named_parameters()]
    assert_same_logits(found, theirs)
    assert all(parameter.requires_grad for parameter in found.parameters())


def test_adapters_on_adapters_are_saved_merged(base: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    save_model(trained_policy(base, torch.float32, save="adapter"), first, torch.float32)
    with pytest.raises(ValueError, match=r"is itself adapters on .*base'.*set model.lora.save to merged\.$"):
        load_policy(str(first), torch.float32, lora=LoraOptions(save="adapter"))
    second = load_policy(str(first), torch.float32, lora=LORA)
    save_model(second, tmp_path / "second", torch.float32)
    again = load_policy(str(tmp_path / "second"), torch.float32)
    assert_same_logits(again.model, second.model)


def test_a_base_that_is_gone(base: Path, tmp_path: Path) -> None:
    save_model(trained_policy(base, torch.float32, save="adapter"), tmp_path / "adapter", torch.float32)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"^The model .*adapter' \(adapters on '{base}'\) can't be loaded: "):
        load_policy(str(tmp_path / "adapter"), torch.float32)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "c_attn", "self_attn"])
def test_a_target_that_can_not_be_adapted(target: str) -> None:
    with pytest.raises(
        ValueError,
        match=rf"^model.lora.targets names {target}, but what can be adapted in LlamaForCausalLM are down_proj, "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; take some of these, or all-linear.$",
    ):
        adapted(llama(0), LoraOptions(targets=("q_proj", target)))


def missing(name: str) -> str:
    raise PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (
            lambda name: "0.22.0",
            "the peft that is installed is version 0.22.0; negaware was tested with peft>=0.21,<0.22",
        ),
        (missing, "model.lora needs the package peft, which is not installed; run: pip install 'peft>=0.21,<0.22'"),
    ],
)
def test_without_a_tested_peft_it_says_what_to_install(installed, said, base: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(libraries, "version", installed)
    with pytest.raises(ValueError, match=f"^{said}"):
        load_policy(str(base), torch.float32, lora=LORA)
    assert load_policy(str(base), torch.float32).lora is None
