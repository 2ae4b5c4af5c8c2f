"""The real DeepSpeed under the real TRL: two processes (gloo) whose optimizer or weights ZeRO has in shards."""

import json
from importlib.util import find_spec
from math import sqrt
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny_trl import torchrun

from tiny_run import ROUNDED, write_tiny_model

pytestmark = [
    pytest.mark.slow,  # imports of TRL and DeepSpeed, which compiles as well
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="make test-slow installs DeepSpeed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by two processes without DeepSpeed."""
    folder = tmp_path_factory.mktemp("deepspeed")
    write_tiny_model(folder / "model")
    torchrun(2, "deepspeed_trl.py", str(folder), "0")
    return folder


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_the_same(folder: Path, stage: int) -> None:
    torchrun(2, "deepspeed_trl.py", str(folder), str(stage))
    expected, found = (json.loads((folder / f"log-{run}.json").read_text())[:-1] for run in (0, stage))
    size = {
        "loss": max(abs(each["loss"]) for each in expected),
        "grad_norm": min(each["grad_norm"] for each in expected),
    }
    for theirs, ours in zip(expected, found, strict=True):
        for name in theirs.keys() & {"reward", "refill/questions_asked"}:  # a batch that is learnt from again has none
            assert ours[name] == theirs[name], name
        for name in size:
            assert ours[name] == pytest.approx(theirs[name], rel=0, abs=ROUNDED * size[name]), name
    assert found[1]["nft/share_at_epsilon"] == expected[1]["nft/share_at_epsilon"] > 0
    assert len(found) == 3
    assert size["loss"] > 1e-3, "off-policy at the second step on a batch"
    theirs, ours = (load_file(folder / name / "model.safetensors") for name in ("0", str(stage)))
    assert ours.keys() == theirs.keys()
    apart = sqrt(sum(float((ours[name] - theirs[name]).square().sum()) for name in theirs))
    assert apart < ROUNDED * sum(each["learning_rate"] * each["grad_norm"] for each in expected)
