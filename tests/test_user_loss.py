"""A loss of one's own, `objective: {loss: module:function}`: found, checked against its signature, trained, resumed."""

# ruff: noqa: E501
# The tables hold whole sentences.

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from forked_command import Ended, Fault, negaware
from negaware.config import ConfigError, load_config, parse_config
from tiny_run import timeless_metrics, tiny_config, write_tiny_config

LOSSES = """
from typing import Annotated, Literal

import torch

from negaware.objectives import OBJECTIVES, Option
from my_words import NAME

def as_nft(answers, *, floor: float = 1.0, weight: str = "one_minus_rate"):
    assert NAME == "beside"
    return OBJECTIVES["nft"].terms(answers, epsilon=floor, prompt_weight=weight)

def many(answers, *, needed: int, temperature=1.0, flag: bool = False, side: Literal["left", "right"] = "left",
         cap: Annotated[float | None, Option("A cap.", above=0)] = None):
    if cap is not None and cap > 9:
        raise ValueError(f"cap is {cap}; take 9 at most")
    loss = -answers.correct.float()[:, None] * answers.logprobs * (2 if flag else 1) / temperature
    return torch.where(answers.mask, loss, 0.0)

def by_place(answers, temperature=1.0):
    return answers.logprobs

def anything(answers, **options):
    return answers.logprobs

def alone():
    return 1

def meaningless(answers, *, cap: "Cup" = 1.0):
    return answers.logprobs

def mapping(answers, *, caps: dict = {}):
    return answers.logprobs

def untyped(answers, *, cap=None):
    return answers.logprobs

def shadowing(answers, *, copy: float = 1.0):
    return answers.logprobs

def mean(answers):
    return answers.logprobs.mean()

def later(answers):
    loss = torch.where(answers.mask, -answers.logprobs, 0.0)
    return loss if len(loss) == 8 else loss.sum()  # a batch of eight answers is what it was tried on

NUMBER = 3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny config with the losses beside it."""
    folder = tmp_path_factory.mktemp("own")
    write_tiny_config(folder, run__steps=3)
    (folder / "my_losses.py").write_text(LOSSES)
    (folder / "my_words.py").write_text("NAME = 'beside'\n")
    return folder


def with_loss(folder: Path, objective: Any) -> dict[str, Any]:
    return tiny_config(folder) | {"objective": objective}


def test_its_options_are_those_of_its_signature(folder: Path) -> None:
    config = parse_config(with_loss(folder, {"loss": "my_losses:many", "needed": 2, "flag": True}), folders=[folder])
    options = {"needed": 2, "temperature": 1.0, "flag": True, "side": "left", "cap": None}
    assert config.objective.options == options
    assert config.resolved()["objective"] == {"loss": "my_losses:many", "reduction": "token_mean"} | options
    again = parse_config(yaml.safe_load(yaml.safe_dump(config.resolved())), folders=[folder])
    assert again == config
    assert config.objective.entry.name == "my_losses:many"
    for reduction in ("token_mean", "sequence_mean", "sequence_sum", "constant"):
        short = with_loss(folder, {"loss": "my_losses:as_nft", "reduction": reduction})
        assert parse_config(short, folders=[folder]).objective.reduction == reduction


def test_on_the_command_line(folder: Path) -> None:
    path = folder / "tiny.yaml"
    for named in (["--objective", "my_losses:as_nft"], ["--objective.loss", "my_losses:as_nft"]):
        assert load_config(path, [*named, "--objective.floor", "0.5"]).objective.options["floor"] == 0.5
    with pytest.raises(
        ConfigError, match=r"^objective\.epsilon is no known field; known are loss, reduction, floor, wei"
    ):
        load_config(path, ["--objective", "my_losses:as_nft", "--objective.epsilon", "1"])


@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        ({"loss": "my_losses:many", "needed": 1, "temprature": 1}, "objective.temprature is no known field; did you mean objective.temperature?"),
        ({"loss": "my_losses:many", "needed": 1, "temperature": "hot"}, "objective.temperature is 'hot'; it should be a number."),
        ({"loss": "my_losses:many", "needed": 1, "temperature": True}, "objective.temperature is True; it should be a number."),
        ({"loss": "my_losses:many", "needed": 1.5}, "objective.needed is 1.5; it should be a whole number."),
        ({"loss": "my_losses:many"}, "objective.needed is missing; add it to the config or give --objective.needed VALUE."),
        ({"loss": "my_losses:many", "needed": 1, "side": "top"}, "objective.side is 'top'; it must be one of left, right."),
        ({"loss": "my_losses:many", "needed": 1, "cap": 0}, "objective.cap is 0; it should be greater than 0."),
        ({"loss": "my_losses:many", "needed": 1, "name": "nft"}, "objective.name is no known field; known are loss, reduction, needed, temperature, flag, side, cap."),
        ({"loss": "my_losses:many", "needed": 1, "cap": 10}, "objective: the loss my_losses:many raised ValueError: cap is 10.0; take 9 at most (my_losses.py, line 16); correct it."),
        ({"loss": "my_losses:as_nft", "floor": -1.0}, "objective: the loss my_losses:as_nft raised ValueError: epsilon is -1.0; it may not be below 0. (nft.py, line {line}); correct it."),
        ("my_losses:mean", "objective: the loss my_losses:mean gives a tensor of shape []; it should be [8, 5], that of answers.logprobs: a loss for each token (reduction takes the mean)."),
        ("my_losses:by_place", "objective: loss 'my_losses:by_place' takes answers, temperature=1.0; it should take the answers, then its options by keyword: def my_loss(answers, *, temperature=1.0)."),
        ("my_losses:anything", "objective: loss 'my_losses:anything' takes answers, **options; it should take the answers, then its options by keyword: def my_loss(answers, *, temperature=1.0)."),
        ("my_losses:alone", "objective: loss 'my_losses:alone' takes nothing; it should take the answers, then its options by keyword: def my_loss(answers, *, temperature=1.0)."),
        ("my_losses:meaningless", "objective: loss 'my_losses:meaningless': the type of an option can't be evaluated (NameError: name 'Cup' is not defined); write a number, a text, a boolean or a Literal."),
        ("my_losses:mapping", "objective: loss 'my_losses:mapping': the option caps needs a type that a config can hold, a number, a text, a boolean, a Literal or one of them and None: caps: float = 1.0."),
        ("my_losses:untyped", "objective: loss 'my_losses:untyped': the option cap needs a type that a config can hold, a number, a text, a boolean, a Literal or one of them and None: cap: float = 1.0."),
        ("my_losses:shadowing", "objective: loss 'my_losses:shadowing': an option can't be called 'copy'; choose another name."),
        ("my_losses:NUMBER", "objective: loss 'my_losses:NUMBER': 'NUMBER' must be a function defined with `def` in a module."),
        ("my_losses:other", "objective: loss 'my_losses:other': module 'my_losses' has no function 'other'."),
        ("my_looses:many", "objective: loss 'my_looses:many': there is no my_looses.py in {folder}; a loss of your own must be in the config's folder or where negaware is started."),
        ({"loss": "my_losses"}, "objective: loss is 'my_losses'; write module:function, such as my_losses:my_loss for my_losses.py."),
        ({"loss": 3}, "objective: loss is 3; write module:function, such as my_losses:my_loss."),
    ],
    ids=str,
)  # fmt: skip
def test_refused_in_one_sentence(folder: Path, objective: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(with_loss(folder, objective), folders=[folder])
    told = str(caught.value)
    line = told.partition("nft.py, line ")[2].partition(")")[0]
    assert told == sentence.format(folder=folder, line=line)


def test_it_is_looked_for_beside_the_config_then_where_negaware_was_started(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "def loss(answers, *, {}: float = 1.0):\n    return answers.logprobs * answers.mask\n"
    (tmp_path / "my_losses.py").write_text(body.format("started"))
    (tmp_path / "elsewhere.py").write_text(body.format("started"))
    monkeypatch.chdir(tmp_path)
    path = folder / "tiny.yaml"
    assert list(load_config(path, ["--objective", "elsewhere:loss"]).objective.options) == ["started"]
    with pytest.raises(ConfigError, match="'my_losses' has no function 'loss'"):
        load_config(path, ["--objective", "my_losses:loss"])


def refused(ended: Ended) -> str:
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("negaware: error: ").rstrip("\n")


def test_a_run_killed_and_resumed_is_the_built_in_ones(folder: Path, tmp_path: Path) -> None:
    """The same loss, as one's own and by its name: the same metrics to the letter. The config records the name."""
    config, own = folder / "tiny.yaml", ["--objective", "{loss: 'my_losses:as_nft', floor: 0.5}"]
    runs = {name: tmp_path / name for name in ("own", "nft")}
    built_in = ["--objective.epsilon", 0.5, "--run.folder", runs["nft"]]
    assert negaware("train", config, *built_in).code == 0
    command = ["train", config, *own, "--run.folder", runs["own"]]
    step = Fault("SIGKILL", "negaware.training.optimizer:MasterOptimizer.step", 5)
    assert negaware(*command, faults=[step], cwd=tmp_path).code == -9
    assert "loss: my_losses:as_nft" in (runs["own"] / "config.yaml").read_text()
    sentence = refused(negaware("train", config, "--run.folder", runs["own"], "--resume", cwd=tmp_path))
    assert "is of another config: objective.loss was 'my_losses:as_nft' there and is None now" in sentence
    assert negaware(*command, "--resume", cwd=tmp_path).code == 0
    assert timeless_metrics(runs["own"]) == timeless_metrics(runs["nft"])
    assert "train/share_at_epsilon" in timeless_metrics(runs["own"])[1]


def test_compare_takes_it(folder: Path, tmp_path: Path) -> None:
    own = "my_losses:as_nft"
    command = ("compare", folder / "tiny.yaml", "--objectives", f"nft,{own}", "--run.folder", tmp_path / "study")
    ended = negaware(*command, "--dry-run")
    assert ended.code == 0, ended.err
    assert "1  nft-seed0               to do\n   2  my_losses.as_nft-seed0  to do\n" in ended.out
    command = ("compare", folder / "tiny.yaml", "--objectives", f"{own},my_losses:mean")
    sentence = refused(negaware(*command, "--run.folder", tmp_path / "study"))
    assert sentence.startswith("variant my_losses.mean: objective: the loss my_losses:mean gives a tensor of shape []")


def test_a_dry_run_checks_it_and_loads_nothing(folder: Path) -> None:
    loading = [Fault("SIGKILL", "negaware.tasks.load:load_task"), Fault("SIGKILL", "negaware.loop.train:train")]
    for option in ("--dry-run", "--resume"):
        ended = negaware("train", folder / "tiny.yaml", "--objective", "my_losses:mean", option, faults=loading)
        assert refused(ended).startswith("objective: the loss my_losses:mean gives a tensor of shape []")
    ended = negaware("train", folder / "tiny.yaml", "--objective", "my_losses:as_nft", "--dry-run", faults=loading)
    assert ended.code == 0, ended.err
    assert "objective:\n  loss: my_losses:as_nft\n  reduction: token_mean\n  floor: 1.0\n" in ended.out


def test_what_goes_wrong_in_the_first_step_can_be_mended(folder: Path, tmp_path: Path) -> None:
    for name in ("tiny.yaml", "my_losses.py", "my_words.py"):
        shutil.copy(folder / name, tmp_path / name)
    command = ["train", tmp_path / "tiny.yaml", "--objective", "my_losses:later", "--run.folder", tmp_path / "run"]
    sentence = refused(negaware(*command))
    assert sentence.startswith("the loss my_losses:later gives a tensor of shape []; it should be [")
    losses = (tmp_path / "my_losses.py").read_text().replace(" if len(loss) == 8 else loss.sum()", "")
    (tmp_path / "my_losses.py").write_text(losses)
    assert negaware(*command, "--resume").code == 0
    assert [line["step"] for line in timeless_metrics(tmp_path / "run")] == [0, 1, 2, 3]
