"""A study whose runs sample with vLLM in process, of which a process can have one in its life."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_vllm_run import tiny_config_for_vllm

from forked_command import negaware
from negaware.studies.folder import read_results

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


def test_each_run_has_an_engine_of_its_own(tmp_path: Path) -> None:
    tiny_config_for_vllm(tmp_path, rollout__engine={"name": "vllm", "cache_gib": 0.02}, run__steps=1)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({"base": "tiny.yaml", "variants": {"nft": None, "rft": None}, "seeds": 0}))
    ended = negaware("study", path)
    assert ended.code == 0, ended.out + ended.err
    runs = read_results(tmp_path / "study").runs
    assert [run.variant for run in runs] == ["nft", "rft"]
    assert all(0 < run.metrics[-1]["train/sampler_difference"] < 1e-5 for run in runs)
