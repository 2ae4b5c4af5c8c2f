"""Several ranks over gloo: what one process would have computed, collected, kept and resumed.

The ranks are processes of their own with torchrun's environment; those that need torchrun itself are slow tests.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from forked_command import Fault, negaware, negaware_on_ranks, on_ranks
from negaware.cli import main
from negaware.models.load import load_policy
from negaware.ranks import Ranks, joined_ranks
from tiny_models import gemma4, gpt2, llama, qwen3
from tiny_run import (
    GENTLE,
    assert_same_metrics,
    assert_same_weights,
    timeless_metrics,
    tiny_tokenizer,
    write_tiny_config,
)

AT_STEP = "negaware.training.step:Trainer.step"
SAVE = "torch.distributed.checkpoint:save"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    for make in (llama, qwen3, gpt2, gemma4):
        make(1).save_pretrained(folder / make.__name__)
        shutil.copytree(folder / "tokenizer", folder / make.__name__, dirs_exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("num_ranks", "model", "options"),
    [
        pytest.param(2, "llama", "float32 kept none 5 nft token weights", id="two"),
        pytest.param(
            3, "qwen3", "float32 recomputed none 5 nft sequence weights", id="tied-recomputed", marks=pytest.mark.slow
        ),
        pytest.param(3, "llama", "float32 kept cpu 1 dapo token weights", id="more-ranks-than-rows-offloaded"),
        pytest.param(2, "gpt2", "float32 recomputed none 4 grpo token weights", id="gpt2", marks=pytest.mark.slow),
        pytest.param(2, "llama", "float32 kept none 5 real token weights", id="groups-split"),
        pytest.param(
            3, "llama", "float32 recomputed cpu 1 real token adapters", id="a-group-on-three", marks=pytest.mark.slow
        ),
        pytest.param(2, "llama", "bfloat16 kept none 5 infonca token weights", id="groups", marks=pytest.mark.slow),
        pytest.param(2, "llama", "bfloat16 kept none 5 nft token weights", id="bfloat16", marks=pytest.mark.slow),
        pytest.param(3, "llama", "float32 kept none 4 nft token adapters", id="lora", marks=pytest.mark.slow),
        pytest.param(
            2, "llama", "bfloat16 recomputed none 4 nft token adapters", id="lora-bfloat16", marks=pytest.mark.slow
        ),
    ],
)
def test_gradients_metrics_and_weights_are_those_of_one_process(
    models: Path, num_ranks: int, model: str, options: str
) -> None:
    on_ranks(num_ranks, "rank_programs:train_whole_and_shared", str(models / model), *options.split())


def test_the_collector_agrees_where_shares_teach_nothing() -> None:
    on_ranks(3, "rank_rollouts:collect_with_poor_shares")


def test_ranks_ask_ahead_each_its_part() -> None:
    on_ranks(2, "rank_rollouts:collect_ahead")


def test_ranks_killed_while_answers_go_on_resume_to_the_same_run(tmp_path: Path) -> None:
    """Each rank goes on with what it had under way; of another number of ranks each gets a part of it."""
    config = write_tiny_config(tmp_path, rollout__max_staleness=2, rollout__max_sequences=12)
    command = ("train", config, "--run.folder")
    assert [one.code for one in negaware_on_ranks(2, *command, tmp_path / "straight")] == [0, 0]
    killed = [Fault("SIGKILL", AT_STEP, 4)]
    ended = negaware_on_ranks(2, *command, tmp_path / "killed", faults={0: killed, 1: killed})
    assert [one.code for one in ended] == [-9, -9], ended
    newest = sorted((tmp_path / "killed/checkpoints").iterdir())[-1]
    begun = json.loads((newest / "state.json").read_text())["begun"]
    assert {one["rank"] for one in begun} == {0, 1}
    assert any(draft["token_ids"] for one in begun for draft in one["drafts"])
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    assert [one.code for one in negaware_on_ranks(2, *command, tmp_path / "killed", "--resume")] == [0, 0]
    metrics = timeless_metrics(tmp_path / "straight")
    assert timeless_metrics(tmp_path / "killed") == metrics, "to the last digit"
    assert max(line.get("rollout/staleness_max", 0) for line in metrics) > 0
    alone = negaware(*command, tmp_path / "alone", "--resume")
    assert (alone.code, alone.err) == (0, "")
    assert len(timeless_metrics(tmp_path / "alone")) == len(metrics)


def test_tokens_go_to_the_rank_that_trains_them_and_to_nobody_else() -> None:
    on_ranks(3, "rank_rollouts:send_tokens")


def test_a_loss_that_is_not_finite_on_one_rank_stops_all(models: Path) -> None:
    on_ranks(3, "rank_programs:nan_on_one_rank", str(models / "llama"))


def test_weights_are_whole_one_at_a_time(models: Path, tmp_path: Path) -> None:
    on_ranks(2, "rank_programs:save_and_hand_over_one_by_one", str(models / "gemma4"), str(tmp_path / "model"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    expected = AutoModelForCausalLM.from_pretrained(models / "gemma4", dtype=torch.bfloat16).state_dict()
    for name, weight in saved.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert saved.model.layers[0].layer_scalar == 0.5


@pytest.mark.slow
def test_adapters_of_a_real_width_are_merged_in_shards(models: Path, tmp_path: Path) -> None:
    """SmolLM2's widths, and GPT-2's layers, which keep their weights the other way round."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    llama(1, num_hidden_layers=1, head_dim=64, **sizes).save_pretrained(tmp_path / "wide")
    gpt2(1, n_embd=576, n_head=9, n_layer=1).save_pretrained(tmp_path / "wide_gpt2")
    for name in ("wide", "wide_gpt2"):
        shutil.copytree(models / "tokenizer", tmp_path / name, dirs_exist_ok=True)
        on_ranks(2, "rank_programs:merge_adapters_of_a_real_width", str(tmp_path / name))


def test_a_disk_that_is_not_shared_is_found_out(tmp_path: Path) -> None:
    on_ranks(2, "rank_programs:write_where_others_do_not_look", str(tmp_path))


def test_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match=r"rank 13 is number 6 on its machine, where torch sees 4 GPUs; start "):
        Ranks(13, 16, local_rank=5).device("cuda")


@pytest.mark.slow
def test_of_a_rank_that_dies_elsewhere_the_machine_is_named() -> None:
    on_ranks(3, "rank_programs:lose_one_on_another_machine")


def test_what_ranks_tell_one_another() -> None:
    on_ranks(3, "rank_programs:leave_alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, its run by one process, and by three ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    config = write_tiny_config(folder, **GENTLE)
    assert negaware("train", config).code == 0
    ended = negaware_on_ranks(3, "train", config, "--run.folder", folder / "three")
    assert [one.code for one in ended] == [0, 0, 0], ended
    assert [one.err for one in ended] == [""] * 3
    assert "step 5/5" in ended[0].out
    assert [one.out for one in ended[1:]] == ["", ""], "one rank speaks for all"
    return folder


def test_a_run_of_three_ranks_is_the_run_of_one(folder: Path) -> None:
    assert_same_metrics(folder / "three", folder / "run")
    for part in ("answers", "evaluations"):
        names = sorted(path.name for path in (folder / "run" / part).iterdir())
        assert sorted(path.name for path in (folder / "three" / part).iterdir()) == names
        for name in names:
            assert (folder / "three" / part / name).read_text() == (folder / "run" / part / name).read_text()


def test_the_finished_model_is_whole(folder: Path) -> None:
    assert_same_weights(folder / "three", folder / "run")
    loaded = [AutoModelForCausalLM.from_pretrained(folder / run / "model") for run in ("three", "run")]
    assert loaded[0].dtype == loaded[1].dtype
    assert loaded[0].generation_config.eos_token_id == loaded[1].generation_config.eos_token_id
    configs = [json.loads((folder / run / "model" / "config.json").read_text()) for run in ("three", "run")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_checkpoint_of_three_ranks_resumes_on_fewer(folder: Path, num_ranks: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "three", run)
    shutil.rmtree(run / "checkpoints" / "step-000005")
    shutil.rmtree(run / "model")
    (run / "summary.json").unlink()
    command = ("train", folder / "tiny.yaml", "--run.folder", run, "--resume")
    ended = negaware_on_ranks(num_ranks, *command) if num_ranks > 1 else [negaware(*command)]
    assert [one.code for one in ended] == [0] * num_ranks, ended
    assert_same_metrics(run, folder / "run")
    assert "step 4/5" not in ended[0].out, "it should go on after step 4"


@pytest.mark.parametrize(
    ("dead", "place", "call"),
    [
        pytest.param(0, AT_STEP, 4, marks=pytest.mark.slow, id="first"),
        pytest.param(2, AT_STEP, 4, marks=pytest.mark.slow, id="training"),
        pytest.param(1, SAVE, 2, marks=pytest.mark.slow, id="writing a checkpoint"),
    ],
)
def test_a_rank_that_dies_is_named_and_the_resumed_run_is_the_whole_one(
    folder: Path, dead: int, place: str, call: int, tmp_path: Path
) -> None:
    """Without torchrun to bring the others down, they find out by themselves."""
    command = ("train", folder / "tiny.yaml", "--run.folder", tmp_path / "run")
    ended = negaware_on_ranks(3, *command, faults={dead: [Fault("SIGKILL", place, call)]})
    assert [one.code for one in ended] == [-9 if rank == dead else 2 for rank in range(3)], ended
    for rank in {0, 1, 2} - {dead}:
        assert f"rank {dead} (process " in ended[rank].err, ended[rank].err
        assert "has died" in ended[rank].err
        assert "--resume" in ended[rank].err
        own = [line for line in ended[rank].err.splitlines() if "c10d" not in line and not line.startswith("frame #")]
        assert dead == 0 or len(own) == 1  # torch has more to say if the store goes with the first rank
    assert max(one.second for one in ended) - ended[dead].second < 15
    assert [one.code for one in negaware_on_ranks(3, *command, "--resume")] == [0, 0, 0]
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(folder / "three"), "to the last digit"


def test_an_error_of_all_is_said_by_the_first_and_by_others_with_their_rank(folder: Path) -> None:
    ended = negaware_on_ranks(2, "train", folder / "tiny.yaml")  # its run folder holds a run
    assert ended[0].code == 2
    assert ended[0].err.startswith("negaware: error: run folder")
    assert "rank 0 (process" in ended[1].err


@pytest.mark.parametrize("number", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGUSR1"])
def test_a_signal_to_one_rank_ends_all_after_the_same_step(folder: Path, tmp_path: Path, number: str) -> None:
    command = ("train", folder / "tiny.yaml", "--run.folder", tmp_path / "run")
    ended = negaware_on_ranks(2, *command, faults={1: [Fault(number, AT_STEP, 3)]})
    assert [one.code for one in ended] == [130, 130], ended
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").iterdir())] == ["step-000002", "step-000003"]
    assert [one.code for one in negaware_on_ranks(2, *command, "--resume")] == [0, 0]
    assert_same_metrics(tmp_path / "run", folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_adapters_in_shards(folder: Path, save: str, tmp_path: Path) -> None:
    lora = ("--model.lora.rank", 4, "--model.lora.save", save)
    one, two = tmp_path / "one", tmp_path / "two"
    assert negaware("train", folder / "tiny.yaml", *lora, "--run.folder", one).code == 0
    ended = negaware_on_ranks(2, "train", folder / "tiny.yaml", *lora, "--run.folder", two)
    assert [each.code for each in ended] == [0, 0], ended
    assert_same_metrics(two, one)
    if save == "merged":  # 32/4 B A changes by at most 8 times what B and A do, whose norms are below 1
        assert_same_weights(two, one, times=2 * 32 / 4)
    else:
        assert_same_weights(two, one, "model/adapter_model.safetensors")
    assert load_policy(str(two / "model"), torch.float32).model.num_parameters() > 0


def torchrun(num_ranks: int, config: Path, *options: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    launcher += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    return subprocess.Popen(
        [*launcher, "-m", "negaware", "train", str(config), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def process_of_rank(rank: int, launcher: int) -> int:
    """The process with this rank that a torchrun has started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            environment, command = (place / "environ").read_text(), (place / "cmdline").read_text()
            if parent == launcher and f"\0RANK={rank}\0" in environment and "-m\0negaware" in command:
                return int(place.name)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    raise LookupError(rank)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_torchrun_brings_all_down_when_one_is_killed_and_resumes(tmp_path: Path) -> None:
    config = write_tiny_config(tmp_path, run__steps=12, run__checkpoint_every=2)
    straight = negaware_on_ranks(3, "train", config, "--run.folder", tmp_path / "straight")
    assert [one.code for one in straight] == [0, 0, 0], straight
    process = torchrun(3, config)
    wait_for(tmp_path / "run/answers/000003.jsonl", process)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    began = time.monotonic()
    _, err = process.communicate(timeout=180)
    assert time.monotonic() - began < 20
    assert process.returncode == 1
    root_cause = err[err.index("Root Cause") :]
    assert "rank      : 1 " in root_cause
    assert "SIGKILL" in root_cause
    resumed = torchrun(3, config, "--resume")
    _, err = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, err
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(tmp_path / "straight"), "to the last digit"


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGUSR1"])
def test_a_signal_to_torchrun_leaves_a_checkpoint_of_the_last_step(tmp_path: Path, number: str) -> None:
    """As docs/scaling.md has it for SLURM."""
    changes = {"run__steps": 100_000, "run__checkpoint_every": 100_000, "training__learning_rate": 1e-9}
    process = torchrun(2, write_tiny_config(tmp_path, **changes))
    wait_for(tmp_path / "run/answers/000003.jsonl", process)
    os.killpg(process.pid, signal.Signals[number])  # the ranks aren't in its group: it tells them
    out, _ = process.communicate(timeout=180)
    assert out.count("Stopping after this step") == 1
    last = [line.split("/")[0].removeprefix("step ") for line in out.splitlines() if line.startswith("step ")][-1]
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [f"step-{int(last):06d}"]


@pytest.mark.slow
def test_torchrun_says_a_mistake_once(tmp_path: Path) -> None:
    process = torchrun(2, tmp_path / "none.yaml")
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert err.count("negaware: error") == 1
    assert "none.yaml can't be read" in err


def test_ranks_without_a_launcher_are_asked_for_one(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match=r"WORLD_SIZE is '2'.* start with torchrun, or unset it"), joined_ranks():
        pass
    assert main(["evaluate", "m", "--task", "t"]) == 2
    assert "one process; start it without torchrun" in capsys.readouterr().err
