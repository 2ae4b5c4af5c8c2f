"""Which engine a config gets, and what is said where it can't be had."""

import importlib.util
import socket

import pytest
import torch

from negaware.models.load import load_policy
from negaware.ranks import ALONE
from negaware.rollout.engines import make_engine
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions, require_split_heads
from tiny_run import write_tiny_model


@pytest.fixture
def policy(tmp_path):
    return load_policy(str(write_tiny_model(tmp_path / "model")), torch.float32)


def made(policy, tmp_path, engine):
    return make_engine(
        RolloutOptions(engine=engine), policy, policy.model.name_or_path, torch.float32, "cpu", tmp_path, ALONE
    )


def test_by_default_it_samples_with_the_policys_model(policy, tmp_path):
    engine = make_engine(
        RolloutOptions(max_sequences=7), policy, policy.model.name_or_path, torch.float32, "cpu", tmp_path, ALONE
    )
    assert isinstance(engine, LocalEngine)
    assert engine.network is policy.network
    assert engine.max_sequences == 7
    engine.load_weights(policy.model.named_parameters(), version=4)
    assert engine.version == 4


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_that_is_not_installed_is_named(policy, tmp_path):
    with pytest.raises(
        ValueError, match=r"rollout.engine is vllm, which can't be imported .*; install vllm>=0.32,<0.33"
    ):
        made(policy, tmp_path, "vllm")


@pytest.mark.parametrize(
    ("heads", "key_heads", "fitting"), [(40, 8, "1, 2, 4, 8, 40"), (9, 3, "1, 3, 9"), (6, 1, "1, 2, 3, 6")]
)
def test_ranks_that_cannot_share_the_heads(heads, key_heads, fitting):
    """vLLM splits the heads with keys, or copies each for several ranks."""
    for ranks in map(int, fitting.split(", ")):
        require_split_heads(ranks, heads, key_heads)
    for ranks in {5, 7, 16}:
        with pytest.raises(ValueError, match=rf"parallel is {ranks}, but .* can be shared by {fitting} ranks only"):
            require_split_heads(ranks, heads, key_heads)


def test_vllm_is_not_started_for_ranks_that_cannot_share_the_heads(policy, tmp_path):
    with pytest.raises(ValueError, match=r"tensor_parallel is 3, but the model's 4 attention heads \(2 with keys\)"):
        made(policy, tmp_path, {"name": "vllm", "tensor_parallel": 3})


def test_a_server_that_is_not_there_is_named(policy, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ValueError, match=rf"The vLLM server {url} can't be reached .*Connection refused"):
        made(policy, tmp_path, {"name": "vllm_server", "url": url})
    assert not (tmp_path / "weights").exists()


def test_a_folder_in_which_vllm_would_see_a_pattern_is_refused(policy, tmp_path):
    """Of what is trained on, `w[1]` would be read from `w1`."""
    engine = {"name": "vllm_server", "url": "http://127.0.0.1:9", "shared_folder": str(tmp_path / "w[1]")}
    with pytest.raises(ValueError, match=r"vLLM takes \S+w\[1\]\S+ for a pattern"):
        made(policy, tmp_path, engine)
    policy.model.name_or_path = str(tmp_path / "model[1]")
    if importlib.util.find_spec("vllm") is not None:
        with pytest.raises(ValueError, match=r"vLLM takes \S+model\[1\] for a pattern"):
            made(policy, tmp_path, "vllm")
