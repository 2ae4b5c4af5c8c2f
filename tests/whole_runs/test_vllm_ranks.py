"""The real vLLM with what else a run may be made of: several ranks, one engine for two of them, adapters."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

import pytest

from forked_command import negaware, negaware_on_ranks
from served_vllm import Server
from tiny_run import GENTLE, assert_same_metrics, contents, timeless_metrics
from whole_runs.test_vllm_run import tiny_config_for_vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and its run by one process."""
    folder = tmp_path_factory.mktemp("vllm")
    config = tiny_config_for_vllm(folder, rollout__engine={"name": "vllm", "cache_gib": 0.02}, run__steps=3, **GENTLE)
    ended = negaware("train", config)
    assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_ranks_sample_and_train_as_one(folder: Path, tensor_parallel: int, tmp_path: Path) -> None:
    """With an engine each, and with one that they share, each of them half of every weight."""
    options = ("--rollout.engine.tensor_parallel", tensor_parallel, "--run.folder", tmp_path / "run")
    ended = negaware_on_ranks(2, "train", folder / "tiny.yaml", *options)
    assert [one.code for one in ended] == [0, 0], ended
    assert contents(tmp_path / "run/answers") == contents(folder / "run/answers")
    assert_same_metrics(tmp_path / "run", folder / "run")
    assert all(step.get("train/sampler_difference", 0) < 1e-5 for step in timeless_metrics(tmp_path / "run"))


@pytest.mark.parametrize(("cache_gib", "code"), [(0.02, 0), (1e-6, 2)])
def test_nothing_is_left_in_shared_memory(folder: Path, cache_gib: float, code: int, tmp_path: Path) -> None:
    """Of an engine that two ranks shared, or of one that could not start: the next run would meet it."""
    before = set(Path("/dev/shm").glob("*cpushm*"))
    options = ("--rollout.engine.tensor_parallel", 2, "--rollout.engine.cache_gib", cache_gib)
    ended = negaware_on_ranks(2, "train", folder / "tiny.yaml", *options, "--run.folder", tmp_path / "run")
    assert [one.code for one in ended] == [code, code], ended
    assert set(Path("/dev/shm").glob("*cpushm*")) == before


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_vllm_samples_with_the_adapters_merged(folder: Path, num_ranks: int, tmp_path: Path) -> None:
    """The trainer's log-probabilities, of adapters apart, are the sampler's after each step that changed them."""
    options = ("--model.lora.rank", 4, "--training.learning_rate", 0.02, "--run.folder", tmp_path / "run")
    command = ("train", folder / "tiny.yaml", *options)
    ended = negaware_on_ranks(num_ranks, *command) if num_ranks > 1 else [negaware(*command)]
    assert {one.code for one in ended} == {0}, ended
    metrics = timeless_metrics(tmp_path / "run")[1:]
    assert all(step["train/grad_norm"] > 0 for step in metrics)
    assert all(step["train/sampler_difference"] < 1e-5 for step in metrics)


def test_ranks_share_a_server(tmp_path: Path) -> None:
    """A run of one process and one of two, through a real server: the same answers, each of the newest weights.

    Steps follow the gradient: AdamW's first ones would make another weight of what is rounded otherwise.
    """
    config = tiny_config_for_vllm(tmp_path, tied=False, run__steps=3, **GENTLE)
    server = Server(tmp_path)
    try:
        engine = ("--rollout.engine", f"{{name: vllm_server, url: '{server.url}'}}")
        alone = negaware("train", config, *engine)
        assert alone.code == 0, alone.err
        engine = (
            "--rollout.engine",
            f"{{name: vllm_server, url: '{server.url}', shared_folder: {tmp_path / 'shared'}}}",
        )
        ended = negaware_on_ranks(2, "train", config, *engine, "--run.folder", tmp_path / "two")
        assert [one.code for one in ended] == [0, 0], ended
    finally:
        server.stop()
    assert contents(tmp_path / "two/answers") == contents(tmp_path / "run/answers")
    for run in ("run", "two"):
        metrics = timeless_metrics(tmp_path / run)[1:]
        assert all(step["train/grad_norm"] > 0 and step["train/sampler_difference"] < 1e-5 for step in metrics)
    (of_two,) = (tmp_path / "shared").iterdir()
    assert of_two.name.startswith("two-")
    for handed_over in (tmp_path / "run/weights", of_two):
        assert not list(handed_over.iterdir()), "handed over, and deleted"


def test_answers_go_on_across_updates(folder: Path, tmp_path: Path) -> None:
    """In process: some tokens that are trained on are older than the policy, none by more than the bound."""
    options = ("--rollout.max_staleness", 1, "--rollout.max_sequences", 24, "--run.steps", 6)
    ended = negaware("train", folder / "tiny.yaml", *options, "--run.folder", tmp_path / "run")
    assert ended.code == 0, ended.err
    metrics = timeless_metrics(tmp_path / "run")[1:]
    assert 0 < max(step["rollout/staleness_max"] for step in metrics) <= 1
    assert all(step["train/grad_norm"] > 0 and step["train/sampler_difference"] < 1e-5 for step in metrics)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_server_that_is_killed_costs_a_sentence(num_ranks: int, tmp_path: Path) -> None:
    """Two real servers sample while the trainer works, and one is killed after the first step: the run ends well."""
    config = tiny_config_for_vllm(tmp_path, tied=False, run__steps=4, rollout__max_staleness=1)
    server, mortal = Server(tmp_path), Server(tmp_path)
    try:
        engine = ("--rollout.engine", f"{{name: vllm_server, url: ['{server.url}', '{mortal.url}']}}")
        first_step = tmp_path / "run/answers/000001.jsonl"
        Thread(target=lambda: (_wait_for(first_step), mortal.stop()), daemon=True).start()
        command = ("train", config, *engine)
        ended = negaware_on_ranks(2, *command) if num_ranks > 1 else [negaware(*command)]
    finally:
        server.stop()
        mortal.stop()
    assert [one.code for one in ended] == [0] * num_ranks, ended
    said = "".join(one.out + one.err for one in ended)
    assert f"The vLLM server {mortal.url} can't be reached" in said
    assert "is left out" in said
    metrics = timeless_metrics(tmp_path / "run")[1:]
    assert [step["step"] for step in metrics] == [1, 2, 3, 4]
    assert max(step["rollout/staleness_max"] for step in metrics) <= 1
    assert all(step["train/sampler_difference"] < 1e-5 for step in metrics)


def _wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)
