"""Which engine a config gets, and what is said where it can't be had."""

import importlib.util
import socket

import pytest
import torch

from negaware.models.load import load_policy
from negaware.ranks import ALONE
from negaware.rollout.engines import make_engine
from negaware.rollout.local import LocalEngine
from negaware.rollout.options import RolloutOptions
from tiny_run import write_tiny_model


@pytest.fixture
def policy(tmp_path):
    return load_policy(str(write_tiny_model(tmp_path / "model")), torch.float32)


def made(policy, tmp_path, engine):
    return make_engine(
        RolloutOptions(engine=engine), policy, policy.model.name_or_path, "float32", "cpu", tmp_path, ALONE
    )


def test_by_default_it_samples_with_the_policys_model(policy, tmp_path):
    engine = make_engine(
        RolloutOptions(max_sequences=7), policy, policy.model.name_or_path, "float32", "cpu", tmp_path, ALONE
    )
    assert isinstance(engine, LocalEngine)
    assert engine.model is policy.model
    assert engine.max_sequences == 7
    engine.load_weights(policy.model.named_parameters(), version=4)
    assert engine.version == 4


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_that_is_not_installed_is_named(policy, tmp_path):
    with pytest.raises(
        ValueError, match=r"rollout.engine is vllm, which can't be imported .*; install vllm>=0.32,<0.33"
    ):
        made(policy, tmp_path, "vllm")


def test_a_server_that_is_not_there_is_named(policy, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(ValueError, match=rf"The vLLM server {url} can't be reached .*Connection refused"):
        made(policy, tmp_path, {"name": "vllm_server", "url": url})
    assert not (tmp_path / "weights").exists()
