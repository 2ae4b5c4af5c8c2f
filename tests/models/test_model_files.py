"""A model's folder as a user hands it over: odd types, absurd sizes, numbers that are none, a disk that is full."""

import ctypes
import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from negaware.models.cpu import kernels
from negaware.models.load import load_policy
from negaware.models.save import save_model
from tiny_run import write_tiny_model


@pytest.fixture
def folder(tmp_path):
    return write_tiny_model(tmp_path / "model")


def changed(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_no_number_is_named(value, name, folder):
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=rf"can't be loaded: {name} holds NaN or infinity in the files of the model"):
        load_policy(str(folder), torch.bfloat16)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**8), ("hidden_size", 2**40), ("vocab_size", 10**300), ("num_attention_heads", -4)],
)
def test_sizes_beyond_any_model(field, value, folder):
    changed(folder, "config.json", **{field: value})
    with pytest.raises(ValueError, match=rf"^{field} in the config.json of the model .* is {str(value)[:9]}.*would do"):
        load_policy(str(folder), torch.float32)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "32"), ("hidden_size", [32]), ("num_hidden_layers", None), ("num_hidden_layers", {}),
        ("num_attention_heads", 0), ("num_attention_heads", 2.5), ("rope_parameters", "x"), ("hidden_act", 7),
        ("model_type", 3), ("vocab_size", True), ("rms_norm_eps", []), ("dtype", "float17"),
    ],
)  # fmt: skip
def test_odd_types_in_a_config(field, value, folder):
    changed(folder, "config.json", **{field: value})
    with pytest.raises(
        ValueError, match=rf"The model '{folder}' (can't be loaded|has no tokenizer that can be loaded)"
    ):
        load_policy(str(folder), torch.float32)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{", "", '{"model_type": "llama"', "[" * 100_000])
def test_a_config_that_is_no_object(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"The model '{folder}' (can't be loaded|has no tokenizer that can be loaded)"
    ):
        load_policy(str(folder), torch.float32)


@pytest.mark.parametrize("value", ["x", [["x"]], {"a": 1}, 1.5])
def test_an_odd_end_of_sequence(value, folder):
    changed(folder, "generation_config.json", eos_token_id=value)
    with pytest.raises(ValueError, match=r"generation_config.json"):
        load_policy(str(folder), torch.float32)


def test_a_disk_that_fills_up_while_the_tokenizer_is_written(folder, tmp_path):
    policy = load_policy(str(folder), torch.float32)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"saved can't be written \(No space left on device.*\); make room, then go on with"
    ):
        save_model(policy, tmp_path / "saved", torch.float32)


def test_a_compiled_library_without_its_functions(tmp_path, monkeypatch, caplog):
    """A compiler that leaves them out: torch's operations take their place, and it is said."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho | cc -shared -fPIC -x c - -o "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert not isinstance(kernels._compiled([]), ctypes.CDLL)
    assert "the compiled library lacks add_normed, attend" in caplog.text
