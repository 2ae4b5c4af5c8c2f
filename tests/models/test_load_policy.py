"""Loading: what it refuses, each in one clear sentence, and that what is saved is an ordinary transformers folder."""

import json
import os
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from negaware.models.files import is_whole
from negaware.models.load import load_codec, load_policy
from negaware.models.options import LoraOptions
from negaware.models.save import save_model
from tiny_models import gemma4, gpt2, llama, qwen3

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"


def make_tokenizer(**options) -> PreTrainedTokenizerFast:
    """One token a character."""
    letters = string.ascii_lowercase + string.digits + " .,:;?!+-*/=()<>"
    vocabulary = {"<end>": 0, "<turn>": 1} | {letter: number for number, letter in enumerate(letters, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"eos_token": "<end>", "chat_template": TEMPLATE} | options
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as others make them."""
    llama(0).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_in_the_dtype_asked_for_without_dropout(folder):
    policy = load_policy(str(folder), torch.bfloat16)
    assert policy.model.dtype == torch.bfloat16
    assert not policy.model.training
    assert policy.max_tokens == 512
    assert policy.codec.stop_token_ids == (0,)
    assert policy.model.generation_config.eos_token_id == [0]


def test_the_codec_asks_and_reads(folder):
    codec = load_codec(str(folder))
    tokens = codec.encode([{"role": "user", "content": "1+2=?"}])
    assert codec.decode(tokens).replace(" ", "") == "1+2=?:"  # the template's generation prompt is the colon
    assert codec.decode([*tokens, 0]) == codec.decode(tokens)


def test_whatever_ends_the_models_turns_stops_an_answer(folder):
    """The tokenizer's eos and those of generation_config.json: with the first alone some models would never stop."""
    for found, expected in ((1, (0, 1)), ([0, 1, 5], (0, 1, 5)), ([1], (0, 1))):
        config = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": found}))
        assert load_codec(str(folder)).stop_token_ids == expected
    (folder / "generation_config.json").unlink()
    assert load_codec(str(folder)).stop_token_ids == (0,)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "runs/demo/model"])
def test_no_such_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"^There is no model folder '{name}'; name a folder that exists, a hub model"
    ):
        load_policy(name, torch.float32)


def test_no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        ValueError, match=r"has no tokenizer that can be loaded .*put the tokenizer's files into its fold"
    ):
        load_policy(str(folder), torch.float32)


def test_an_unreadable_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(
        ValueError, match=r"has no tokenizer that can be loaded .*put the tokenizer's files into its fold"
    ):
        load_policy(str(folder), torch.float32)


def test_no_chat_template(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template; add one as chat_template.jinja to its folder"):
        load_policy(str(folder), torch.float32)


def test_no_end_of_sequence_token(folder):
    make_tokenizer(eos_token=None).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has no eos token, so no answer would ever end; set eos_token in its tok"):
        load_policy(str(folder), torch.float32)


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json"])
def test_no_model(folder, damage):
    (folder / damage).unlink()
    with pytest.raises(ValueError, match=rf"'{folder}'"):
        load_policy(str(folder), torch.float32)


def test_cut_off_weights(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match="can't be loaded"):
        load_policy(str(folder), torch.float32)


GATE = "model.layers.0.mlp.gate_proj.weight"


def change_weights(file: Path, change) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda weights: weights.pop(GATE), rf"lack {GATE}, which would be random"),
        (lambda weights: weights.pop("lm_head.weight"), "lack lm_head.weight, which would be random"),
        (
            lambda weights: [weights.pop(name) for name in list(weights) if "layers.1." in name],
            r"lack model\.layers\.1\.input_layernorm\.weight, .* and 6 more, which would be random",
        ),
        (
            lambda weights: weights.update({"model.layers.2.more": torch.ones(2)}),
            r"have model\.layers\.2\.more, which it has no place for",
        ),
        (
            lambda weights: weights.update({GATE: torch.ones(48, 3)}),
            rf"have {GATE} as \[48, 3\], not \[48, 32\], which doesn't fit its config.json",
        ),
    ],
    ids=["a weight", "the head", "a layer", "a weight too many", "a shape"],
)
def test_other_weights_than_the_models_own(folder, change, complaint, capfd):
    """transformers would draw random ones, and say so among other lines."""
    change_weights(folder / "model.safetensors", change)
    with pytest.raises(ValueError, match=rf"^The model '{folder}' can't be loaded: The files of .* {complaint}; get "):
        load_policy(str(folder), torch.float32)
    assert "REPORT" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("make", [qwen3, gpt2, gemma4], ids=["tied head", "gpt2", "constants"])
def test_what_may_be_missing_or_too_much_is_no_fault(folder, make):
    """A tied head, and the frequencies that older files hold."""
    make(0).save_pretrained(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    if make is qwen3:
        change_weights(folder / "model.safetensors", lambda weights: weights.update({name: torch.ones(4)}))
    expected = make(0).state_dict()
    for key, weight in load_policy(str(folder), torch.float32).model.state_dict().items():
        assert torch.equal(weight, expected[key]), key


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda weights: weights.pop(next(iter(weights))), r"lack base_model\..*lora_A.*, which would be random"),
        (
            lambda weights: weights.update(
                {"base_model.model.model.layers.7.mlp.up_proj.lora_A.weight": torch.ones(2)}
            ),
            r"have base_model\..*layers\.7.*, which its base has no place for",
        ),
    ],
    ids=["one missing", "one too many"],
)
def test_other_adapters_than_they_are_said_to_be(folder, tmp_path, change, complaint):
    policy = load_policy(str(folder), torch.float32, lora=LoraOptions(rank=2, save="adapter"))
    save_model(policy, tmp_path / "adapters", torch.float32)
    assert load_policy(str(tmp_path / "adapters"), torch.float32).model.num_parameters() > 0
    change_weights(tmp_path / "adapters" / "adapter_model.safetensors", change)
    with pytest.raises(ValueError, match=complaint):
        load_policy(str(tmp_path / "adapters"), torch.float32)


def test_weights_in_a_format_that_can_hold_code(folder, tmp_path):
    policy = load_policy(str(folder), torch.float32, lora=LoraOptions(rank=2, save="adapter"))
    save_model(policy, tmp_path / "adapters", torch.float32)
    for place, name in ((tmp_path / "adapters", "adapter_model"), (folder, "model")):
        old = {"adapter_model": "adapter_model.bin", "model": "pytorch_model.bin"}[name]
        torch.save(load_file(place / f"{name}.safetensors"), place / old)
        (place / f"{name}.safetensors").unlink()
        with pytest.raises(ValueError, match=r"can't be loaded: .*safetensors"):
            load_policy(str(place), torch.float32)
        if place != folder:
            (place / f"{name}.safetensors").touch()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_models_own_is_neither_run_nor_asked_about(folder, file, monkeypatch):
    """On a terminal transformers would ask for leave on the standard input."""
    config = json.loads((folder / file).read_text())
    config |= {"model_type": "own"} if file == "config.json" else {"tokenizer_class": "Own"}
    own = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    (folder / file).write_text(json.dumps(config | {"auto_map": own}))
    (folder / "own.py").write_text("raise SystemExit('ran')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(ValueError, match=r"^The model .* can't be loaded: it comes with code of its own \(auto_map\)"):
        load_policy(str(folder), torch.float32)


def test_a_saved_model_is_an_ordinary_folder(folder, tmp_path):
    """transformers loads it with no code of ours, and it says the same, until the same stop token."""
    policy = load_policy(str(folder), torch.float32)
    with torch.no_grad():
        policy.model.lm_head.weight.mul_(1.5)
    save_model(policy, tmp_path / "saved", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    messages = [{"role": "user", "content": "2+2"}]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert encoded["input_ids"][0].tolist() == policy.codec.encode(messages)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(**encoded, **options), policy.model.generate(**encoded, **options))
    assert model.generation_config.eos_token_id == [0]
    assert model.dtype == torch.float32


def test_a_saved_model_is_on_the_disk(folder, tmp_path, monkeypatch):
    """Each of its files, and the folders that name them: a machine that loses power keeps them."""
    durable = []
    fsync = os.fsync

    def recorded(descriptor):
        durable.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    saved = tmp_path / "run" / "saved"
    save_model(load_policy(str(folder), torch.float32), saved, torch.float32)
    assert {*saved.iterdir(), saved, tmp_path / "run"} <= set(durable)
    assert saved / "model.safetensors" in durable


@pytest.mark.parametrize("lora", [None, LoraOptions(rank=2, save="adapter")], ids=["model", "adapters"])
def test_a_model_that_is_cut_short_is_not_whole(folder, tmp_path, lora):
    save_model(load_policy(str(folder), torch.float32, lora=lora), tmp_path / "saved", torch.float32)
    assert is_whole(tmp_path / "saved")
    for file in [*(tmp_path / "saved").glob("*.safetensors"), *(tmp_path / "saved").glob("*config.json")]:
        if file.name != "generation_config.json":
            content = file.read_bytes()
            for damaged in (content[:-3], content[: len(content) // 2], b""):
                file.write_bytes(damaged)
                assert not is_whole(tmp_path / "saved"), file
            file.unlink()
            assert not is_whole(tmp_path / "saved"), file
            file.write_bytes(content)
    assert is_whole(tmp_path / "saved")
    assert not is_whole(tmp_path / "nothing")
