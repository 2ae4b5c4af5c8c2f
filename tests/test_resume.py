"""A run that was killed, interrupted or out of disk, and resumed, equals the run that was not: bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked_command import Ended, Fault, negaware
from tiny_run import contents, timeless_metrics, write_tiny_config

LOADING = "negaware.loop.parts:load_policy"
SAMPLING = "negaware.rollout.local:sample_tokens"
OPTIMIZER_STEP = "negaware.training.optimizer:MasterOptimizer.step"
TENSORS = "torch.distributed.checkpoint:save"
STATE = "negaware.training.checkpoint:replace_file"
SWAPPED = ("negaware.training.checkpoint:sync", 3)
"""A new checkpoint is in its place: both files of its tensors were made durable before, now it is the folder."""
EVALUATION = "negaware.loop.held_out:evaluate"
MODEL = "negaware.loop.train:save_model"
SUMMARY = "negaware.runs.folder:RunFolder.write_summary"


def train(config: Path, *options: object, faults: list[Fault] | None = None) -> Ended:
    return negaware("train", config, *options, faults=faults or [])


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def straight(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a config whose run was never disturbed."""
    folder = tmp_path_factory.mktemp(request.param)
    ended = train(write_tiny_config(folder, training__compute_dtype=request.param))
    assert (ended.code, ended.err) == (0, "")
    return folder


@pytest.fixture(scope="module")
def straight32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight32")
    assert train(write_tiny_config(folder)).code == 0
    return folder


def other_run(straight: Path, name: str) -> tuple[Path, Path]:
    """The straight run's config with another run folder, and that folder."""
    path = straight / f"{name}.yaml"
    run = straight / name
    path.write_text((straight / "tiny.yaml").read_text().replace(str(straight / "run"), str(run)))
    return path, run


def assert_equal_runs(run: Path, straight: Path) -> None:
    expected = straight / "run"
    assert timeless_metrics(run) == timeless_metrics(expected)
    for part in ("model", "answers", "evaluations"):
        assert contents(run / part) == contents(expected / part)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (run, expected)]
    for summary in summaries:
        assert summary.pop("train_seconds") > 0
        assert summary.pop("total_seconds") > 0
        assert summary.pop("processor_seconds") > 0
    assert summaries[0] == summaries[1]
    assert not list(run.rglob("*.partial"))
    assert [path.name for path in sorted((run / "checkpoints").iterdir())][-2:] == ["step-000004", "step-000005"]


def test_the_tiny_run_is_worth_killing(straight: Path) -> None:
    """It carries surplus groups over a checkpoint, learns, and evaluates on the way."""
    metrics = timeless_metrics(straight / "run")
    assert [line["step"] for line in metrics] == [0, 1, 2, 3, 4, 5]
    assert max(line["rollout/num_surplus_groups"] for line in metrics if line["step"] in (2, 4)) > 0
    assert max(line.get("rollout/num_carried_groups", 0) for line in metrics) > 0
    assert [line["step"] for line in metrics if "evaluation/accuracy" in line] == [0, 2, 4, 5]
    assert all(line["train/grad_norm"] > 0 for line in metrics[1:])


@pytest.mark.slow
def test_a_schedule_with_short_rollouts_goes_on_where_it_was(tmp_path: Path) -> None:
    """Rollouts that find fewer questions make fewer optimizer steps; warm-up and cosine count rollouts all the same."""
    schedule = {"training__schedule": "cosine", "training__warmup_rollouts": 2, "evaluation__during": None}
    assert train(write_tiny_config(tmp_path, rollout__max_sampled_questions=5, **schedule)).code == 0
    metrics = timeless_metrics(tmp_path / "run")[1:]
    assert {line["train/num_optimizer_steps"] for line in metrics} == {1, 2}
    before = 1 + int(sum(line["train/num_optimizer_steps"] for line in metrics[:3]))  # the first of step 4
    path, run = other_run(tmp_path, "killed")
    assert train(path, faults=[Fault("SIGKILL", OPTIMIZER_STEP, before)]).code == -9
    ended = train(path, "--resume")
    assert ended.code == 0, ended.err
    assert timeless_metrics(run)[1:] == metrics
    assert contents(run / "model") == contents(tmp_path / "run" / "model")


@pytest.mark.parametrize(
    ("place", "call"),
    [
        pytest.param(SAMPLING, 60, id="sampling"),
        pytest.param(OPTIMIZER_STEP, 6, id="training"),  # step 3's second mini-batch
        pytest.param(TENSORS, 2, id="writing a checkpoint"),
    ],
)
def test_sigkill(straight: Path, place: str, call: int, request: pytest.FixtureRequest) -> None:
    config, run = other_run(straight, request.node.callspec.id.replace(" ", "-"))
    assert train(config, faults=[Fault("SIGKILL", place, call)]).code == -9
    assert not (run / "summary.json").exists()
    ended = train(config, "--resume")
    assert (ended.code, ended.err) == (0, "")
    assert_equal_runs(run, straight)


def test_sigkill_while_answers_go_on_across_updates(tmp_path: Path) -> None:
    """What was drawn of answers under way is in the checkpoint, and they go on from there."""
    config = write_tiny_config(tmp_path, rollout__max_staleness=2, rollout__max_sequences=12)
    assert train(config).code == 0
    staleness = [line.get("rollout/staleness_max", 0) for line in timeless_metrics(tmp_path / "run")]
    assert max(staleness) > 0
    again, run = other_run(tmp_path, "again")
    assert train(again, faults=[Fault("SIGKILL", OPTIMIZER_STEP, 6)]).code == -9  # in step 3
    assert any(any(d["token_ids"] for d in one["drafts"]) for one in begun_of(run))
    refused = train(again, "--resume", "--rollout.max_sequences", 24)  # it decides what is asked ahead
    assert refused.code == 2
    assert "rollout.max_sequences was 12 there and is 24 now" in refused.err
    ended = train(again, "--resume")
    assert (ended.code, ended.err) == (0, "")
    assert_equal_runs(run, tmp_path)


def begun_of(run: Path) -> list[dict]:
    """The questions under way in the newest checkpoint."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return json.loads((newest / "state.json").read_text())["begun"]


@pytest.mark.slow
def test_sigkill_again_and_again(straight32: Path) -> None:
    """Every other moment that leaves something half done, one after another in one run."""
    config, run = other_run(straight32, "again")
    moments = [
        (EVALUATION, 2),  # before training
        (EVALUATION, 3),  # at step 0 of the curve
        (OPTIMIZER_STEP, 1),  # before the first checkpoint
        (STATE, 1),  # tensors are written, the state isn't
        (STATE, 2),  # all but the manifest is written
        SWAPPED,  # the first checkpoint is in its place; nothing is deleted yet
        (EVALUATION, 1),  # on the way, in step 4
        SWAPPED,
        SWAPPED,  # step 5's, and the oldest isn't deleted yet
        (EVALUATION, 2),  # after training
        (MODEL, 1),
        (SUMMARY, 1),
    ]
    for place, call in moments:
        ended = train(config, "--resume", faults=[Fault("SIGKILL", place, call)])
        assert ended.code == -9, (place, ended)
    assert train(config, "--resume").code == 0
    assert_equal_runs(run, straight32)


def test_sigkill_before_the_report_is_written(straight32: Path) -> None:
    config, run = other_run(straight32, "report")
    assert train(config, faults=[Fault("SIGKILL", "negaware.loop.train:write_report")]).code == -9
    assert (run / "summary.json").exists()
    assert train(config, "--resume").code == 0
    assert "<html" in (run / "report.html").read_text()


def test_a_finished_run_is_not_run_again(straight32: Path) -> None:
    config, run = other_run(straight32, "finished")
    assert train(config).code == 0
    before = contents(run)
    ended = train(config, "--resume", faults=[Fault("SIGKILL", LOADING)])
    assert (ended.code, ended.err) == (0, "")
    assert "after [95%]" in ended.out
    assert contents(run) == before


@pytest.mark.slow
def test_ctrl_c_at_any_moment(straight32: Path) -> None:
    """One moment after another in one run: each time a checkpoint of the last finished step is there."""
    config, run = other_run(straight32, "ctrl-c")
    moments = [
        (LOADING, 1, None),
        (EVALUATION, 2, None),  # before training
        (SAMPLING, 20, 0),  # in step 1
        (OPTIMIZER_STEP, 1, 1),  # the step under way is finished first
        (EVALUATION, 1, 2),  # on the way, in step 2
        (SAMPLING, 30, 3),  # in step 4
        (TENSORS, 1, 4),  # while it writes step 4's checkpoint
        (EVALUATION, 2, 5),  # after training
        (MODEL, 1, 5),
    ]
    for place, call, saved in moments:
        ended = train(config, "--resume", faults=[Fault("SIGINT", place, call)])
        assert ended.code == 130, (place, ended)
        assert ended.err == "\nInterrupted. --resume goes on from the last finished step.\n"
        newest = max((path.name for path in run.glob("checkpoints/*")), default=None)
        assert newest == (None if saved is None else f"step-{saved:06d}"), place
    assert train(config, "--resume").code == 0
    assert_equal_runs(run, straight32)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param((OPTIMIZER_STEP, 5), (OPTIMIZER_STEP, 6), id="within a step"),
        pytest.param((SAMPLING, 110), (TENSORS, 2), id="while it saves"),  # in step 4
    ],
)
def test_ctrl_c_twice_ends_at_once(
    straight32: Path, first: tuple[str, int], second: tuple[str, int], request: pytest.FixtureRequest
) -> None:
    config, run = other_run(straight32, "twice-" + request.node.callspec.id.replace(" ", "-"))
    ended = train(config, "--run.checkpoint_every", 2, faults=[Fault("SIGINT", *first), Fault("SIGINT", *second)])
    assert ended.code == 130
    assert ended.err == "\nStopped at once.\n"
    assert train(config, "--resume").code == 0
    assert_equal_runs(run, straight32)


def test_schedulers_and_closed_terminals_are_heard_like_ctrl_c(straight32: Path) -> None:
    """SIGTERM may come twice, as schedulers send it: while a step is trained, and while its checkpoint is written."""
    config, run = other_run(straight32, "signals")
    moments = [
        (["SIGTERM", "SIGTERM"], [(OPTIMIZER_STEP, 1), (OPTIMIZER_STEP, 2)], 1),
        (["SIGHUP", "SIGTERM"], [(OPTIMIZER_STEP, 3), (TENSORS, 2)], 3),
        (["SIGUSR1", "SIGHUP"], [(SAMPLING, 10), (STATE, 1)], 3),
        (["SIGUSR1", "SIGTERM"], [(OPTIMIZER_STEP, 1), (TENSORS, 1)], 4),
    ]
    for signals, places, saved in moments:
        faults = [Fault(name, *place) for name, place in zip(signals, places, strict=True)]
        ended = train(config, "--resume", faults=faults)
        assert (ended.code, ended.err) == (130, "\nInterrupted. --resume goes on from the last finished step.\n")
        assert max(path.name for path in run.glob("checkpoints/*")) == f"step-{saved:06d}"
    assert train(config, "--resume").code == 0
    assert_equal_runs(run, straight32)


def test_a_finished_run_whose_model_is_gone_writes_it_again(straight32: Path) -> None:
    config, run = other_run(straight32, "no-model")
    assert train(config).code == 0
    before = contents(run / "model")
    shutil.rmtree(run / "model")
    assert train(config, "--resume").code == 0
    assert contents(run / "model") == before


def test_ctrl_c_twice_while_loading(straight32: Path) -> None:
    config, _ = other_run(straight32, "twice-loading")
    closing = "negaware.verifiers.math:MathVerifier.close"
    ended = train(config, faults=[Fault("SIGINT", LOADING), Fault("SIGINT", closing)])
    assert (ended.code, ended.err) == (130, "\nStopped at once.\n")
    assert train(config, "--resume").code == 0


def test_unreadable_checkpoint(straight32: Path) -> None:
    config, run = other_run(straight32, "damaged")
    assert train(config, faults=[Fault("SIGKILL", OPTIMIZER_STEP, 10)]).code == -9
    bad, good = run / "checkpoints/step-000004", contents(run / "checkpoints/step-000002")
    tensors = next(bad.glob("tensors/*.distcp"))
    tensors.write_bytes(tensors.read_bytes()[:-100])
    ended = train(config, "--resume")
    assert ended.code == 2
    assert ended.err == (
        f"negaware: error: The checkpoint {bad} can't be read (tensors/{tensors.name} is not what was written); delete "
        "that folder and run again with --resume, which then goes on from step-000002.\n"
    )
    assert contents(run / "checkpoints/step-000002") == good
    shutil.rmtree(bad)
    assert train(config, "--resume").code == 0
    assert_equal_runs(run, straight32)


def test_checkpoint_of_another_config(straight32: Path) -> None:
    config, run = other_run(straight32, "other-config")
    assert train(config, faults=[Fault("SIGKILL", OPTIMIZER_STEP, 6)]).code == -9
    before = contents(run)
    ended = train(config, "--resume", "--training.learning_rate", "1e-3")
    assert ended.code == 2
    assert ended.err == (
        f"negaware: error: {run} is of another config: training.learning_rate was 0.01 there and is 0.001 now; set it "
        "back, or choose another run.folder.\n"
    )
    ended = train(config, "--resume", "--task.limits.seconds", 9)  # it may change a verdict
    assert ended.code == 2
    assert "another config: task.limits.seconds was 1.3 there and is 9.0 now" in ended.err
    assert contents(run) == before
    # What doesn't change what is learnt may change: more checkpoints, other micro-batches, more judges.
    free = {"--run.keep_checkpoints": 3, "--training.micro_batch_tokens": 10_000}
    free |= {"--task.limits.workers": 2, "--evaluation.task.limits.workers": 2}
    ended = train(config, "--resume", *(part for option in free.items() for part in option))
    assert ended.code == 0
    assert len(list((run / "checkpoints").iterdir())) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Fills the disk but for `leave` bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() - leave)
    return ballast


@pytest.mark.parametrize(
    "leave", [pytest.param(0, marks=pytest.mark.slow), 120_000], ids=["before it starts", "at a checkpoint"]
)
def test_full_disk(straight32: Path, small_disk: Path, leave: int) -> None:
    run = small_disk / "run"
    config = straight32 / "tiny.yaml"
    where = ("--run.folder", run, "--run.keep_checkpoints", 1)
    assert train(config, *where, faults=[Fault("SIGKILL", OPTIMIZER_STEP, 6)]).code == -9
    good = contents(run / "checkpoints")
    ballast = fill(small_disk, leave)
    ended = train(config, *where, "--resume")
    assert ended.code == 2
    assert ended.err.startswith("negaware: error: ")
    assert ended.err.count("\n") == 1
    assert "no space left on the " in ended.err.lower()
    assert "--resume" in ended.err
    assert contents(run / "checkpoints") == good
    ballast.unlink()
    assert train(config, *where, "--resume").code == 0
    assert timeless_metrics(run) == timeless_metrics(straight32 / "run")
    assert contents(run / "model") == contents(straight32 / "run" / "model")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000005"]


def test_full_disk_for_the_finished_model(straight32: Path, small_disk: Path) -> None:
    config, run = straight32 / "tiny.yaml", small_disk / "run"
    assert train(config, "--run.folder", run, faults=[Fault("SIGKILL", MODEL)]).code == -9
    fill(small_disk, 20_000)
    ended = train(config, "--run.folder", run, "--resume")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "no space left on device" in ended.err.lower()
    assert not (run / "summary.json").exists()
