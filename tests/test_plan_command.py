"""The plan as `negaware plan` and `--dry-run` print it, and the documentation's page of plans."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from negaware.cli import main
from negaware.planning.advice import fits
from negaware.planning.cost import Seconds
from negaware.planning.memory import memory
from negaware.planning.setting import GIB, Machine
from plan_settings import ROOT, recipe, tiny_setting
from tiny_run import write_tiny_config

RECIPE_32B = [str(ROOT / "configs/paper/nft_32b.yaml"), "--model", str(ROOT / "configs/models/Qwen2.5-32B")]


def test_the_command_says_whether_it_fits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = str(write_tiny_config(tmp_path))
    assert main(["plan", config, "--gpus", "2", "--memory-gib", "1"]) == 0
    printed = capsys.readouterr().out
    assert "It fits: " in printed
    assert "4 questions × 6 answers = 24 sequences" in printed
    assert "40% of 989 TFLOP/s and of 3.35 TB/s, 40 GB/s" in printed
    needed = memory(tiny_setting(tmp_path, 2, "cuda")).peak / GIB
    small = ["plan", config, "--gpus", "2", "--memory-gib", f"{needed:f}"]  # nine tenths of that are usable
    assert main(small) == 1
    printed = capsys.readouterr().out
    assert "It doesn't fit: training takes" in printed
    advised = re.search(r"It fits with (--.+)", printed)
    assert advised
    assert main([*small, *advised[1].split()]) == 0
    assert main(["plan", config, "--gpus", "2", "--memory-gib", "0.00001"]) == 1
    assert "No option is enough" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "model"), [("7b", "Qwen2.5-Math-7B"), ("32b", "Qwen2.5-32B")])
def test_the_recipes_commands_run(name: str, model: str, capsys: pytest.CaptureFixture) -> None:
    recipe_of = [str(ROOT / f"configs/paper/nft_{name}.yaml"), "--model", str(ROOT / "configs/models" / model)]
    assert main(["train", *recipe_of, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "of the form Answer" in printed  # the prompt, in the resolved config
    assert "warmup_rollouts: 10" in printed
    assert "512 questions × 16 answers = 8,192 sequences" in printed
    assert main(["plan", *recipe_of, "--gpus", "128", "--memory-gib", "80"]) == 0
    assert "It fits: " in capsys.readouterr().out


@pytest.mark.parametrize("options", [["plan", "--gpus", "120", "--memory-gib", "80"], ["train", "--dry-run"]])
def test_ranks_that_cannot_share_the_heads_are_refused(options: list[str], capsys: pytest.CaptureFixture) -> None:
    command, *flags = options
    assert main([command, *RECIPE_32B, *flags, "--rollout.engine.tensor_parallel", "3"]) == 2
    printed = capsys.readouterr()
    assert "40 attention heads (8 with keys) can be shared by 1, 2, 4, 8, 40 ranks only" in printed.err


def test_the_gpus_given_may_do_with_offload(capsys: pytest.CaptureFixture) -> None:
    command = ["plan", *RECIPE_32B, "--gpus", "8", "--memory-gib", "80"]
    assert main(command) == 1
    printed = capsys.readouterr().out
    assert "It fits with --gpus 16\n" in printed
    here = re.search(
        r"Or on 8 GPUs, more slowly, with (--\S+ cpu) \(([\d.]+) GiB of the CPU's memory for each\)", printed
    )
    assert here
    assert main([*command, *here[1].split()]) == 0
    printed = capsys.readouterr().out
    assert f"; {here[2]} GiB of the CPU's memory for each." in printed
    assert "moving offloaded weights, and the CPU's optimizer: not counted" in printed


def test_the_dry_run_is_of_as_many_processes_as_share_an_engine(capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *RECIPE_32B, "--dry-run", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "512 rows an optimizer step, 64 micro-batches a rank" in printed
    assert "# Memory (GiB) of each of 8 processes, the fewest that share an engine\n" in printed
    assert "   15.26  weights (32,764M), float32, 1/8" in printed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--gpus", "0", "--memory-gib", "80"], "argument --gpus: '0' is not a whole number above 0"),
        (["--gpus", "8", "--memory-gib", "-1"], "argument --memory-gib: '-1' is not a number above 0"),
        (["--gpus", "8", "--memory-gib", "nan"], "argument --memory-gib: 'nan' is not a number above 0"),
        (["--gpus", "8", "--memory-gib", "80", "--efficiency", "40"], "'40' is not above 0 and at most 1"),
        (["--gpus", "8"], "the following arguments are required: --memory-gib"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture, options: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["plan", "config.yaml", *options])
    assert end.value.code == 2
    assert complaint in capsys.readouterr().err


def test_a_model_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["plan", str(write_tiny_config(tmp_path)), "--gpus", "8", "--memory-gib", "80"]
    (tmp_path / "empty").mkdir()
    for name, sentence in (("none", "There is no model folder"), ("empty", "The config of model")):
        assert main([*command, "--model", str(tmp_path / name)]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"negaware: error: {sentence} '{tmp_path / name}'")


def test_the_dry_run_shows_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_tiny_config(tmp_path, device="cpu")
    assert main(["train", str(config), "--dry-run", "--training.micro_batch_tokens", "4000000"]) == 0
    printed = capsys.readouterr().out
    held = memory(tiny_setting(tmp_path, training__micro_batch_tokens=4_000_000))
    kept = held.moments["training"]["activations, kept"]
    assert f"{kept / GIB:8.2f}  training: activations, kept" in printed
    assert f"{held.peak / GIB:8.2f}  together at the worst moment" in printed


def test_the_page_shows_what_the_commands_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "docs")
    import scaling_plans

    page = scaling_plans.PAGE.read_text()
    assert len(scaling_plans.COMMAND.findall(page)) == 2
    assert scaling_plans.with_outputs(page) == page, "run: python docs/scaling_plans.py"


@pytest.mark.parametrize("ranks", [16, 32, 64, 128])
def test_the_pages_table_of_the_32b_recipe(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    import scaling_plans

    (row,) = re.findall(rf"^\| {ranks} \| (.*) \|$", scaling_plans.PAGE.read_text(), re.MULTILINE)
    setting = recipe("32b", ranks)
    spent = Seconds(setting, Machine())
    training, sampling, trained, step, days = (re.match(r"[\d.]+", cell)[0] for cell in row.split(" | "))
    units = [3600 if "hour" in cell else 60 for cell in row.split(" | ")]
    assert fits(setting, Machine())
    assert memory(setting, Machine()).total("training") / GIB == pytest.approx(float(training), abs=0.05)
    assert spent.sampling == pytest.approx(float(sampling) * units[1], rel=0.03)
    assert spent.training + spent.communication == pytest.approx(float(trained) * units[2], rel=0.03)
    assert spent.step == pytest.approx(float(step) * units[3], rel=0.03)
    assert 320 * spent.step / 86_400 == pytest.approx(float(days), rel=0.03)
    assert (ranks == 16) == (memory(replace(setting, ranks=ranks // 2)).total("training") > Machine().usable)
