"""What NFTConfig takes from TRL's command line, and what it and NFTTrainer refuse."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_trl import begins_with_two, make, nft, questions, right_of_each, settings
from trl import GRPOConfig, TrlParser

from negaware import libraries
from negaware.integrations.trl import NFTConfig, NFTTrainer

# TRL's own uses of transformers' old names.
pytestmark = pytest.mark.filterwarnings(r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning")


def test_the_command_line_of_trl_reads_it(tmp_path: Path) -> None:
    (config,) = TrlParser(NFTConfig).parse_args_and_config(
        ["--output_dir", str(tmp_path), "--prompt_weight", "grpo", "--max_refills", "3", "--use_cpu", "--bf16", "False"]
    )
    assert (config.prompt_weight, config.max_refills, config.implicit_floor) == ("grpo", 3, 1.0)


def test_a_generation_is_one_optimizer_step_unless_told_otherwise(tmp_path: Path) -> None:
    """So by default every ratio is 1, as docs/trl.md says, which names the two options that change it."""
    config = NFTConfig(output_dir=str(tmp_path), gradient_accumulation_steps=4, use_cpu=True, bf16=False)
    assert (config.steps_per_generation, config.num_iterations) == (4, 1)
    several = {"gradient_accumulation_steps": 4, "steps_per_generation": 64, "use_cpu": True, "bf16": False}
    assert NFTConfig(output_dir=str(tmp_path), **several).steps_per_generation == 16 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_type": "grpo"}, "loss_type is 'grpo', but it affects GRPO's loss"),
        ({"epsilon": 0.5}, "epsilon is 0.5, but it affects GRPO's loss .* implicit_floor"),
        ({"scale_rewards": False}, "scale_rewards is 'none'"),
        ({"prompt_weight": "x"}, "prompt_weight is 'x'; choose from uniform, one_minus_rate, grpo, maxrl"),
        ({"implicit_floor": -1.0}, "implicit_floor is -1.0; it may not be below 0"),
    ],
)
def test_options_without_a_place_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NFTConfig(**settings(tmp_path, **changes))


def test_a_batch_of_split_groups_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of six answers, groups of four: the second group lies across them."""
    monkeypatch.setattr(NFTConfig, "world_size", 2)
    changes = {"per_device_train_batch_size": 6, "gradient_accumulation_steps": 1}
    with pytest.raises(ValueError, match=r"generates 6 answers at a time .* no multiple of num_generations \(4\)"):
        NFTConfig(**settings(tmp_path, **changes))
    assert NFTConfig(**settings(tmp_path, max_refills=0, **changes)).max_refills == 0


def test_another_config_and_a_stream_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="takes an NFTConfig as args, not a GRPOConfig"):
        make(NFTTrainer, GRPOConfig, tmp_path, begins_with_two)
    stream = {"train_dataset": questions().to_iterable_dataset()}
    with pytest.raises(ValueError, match="streamed train_dataset can't be refilled from; set max_refills to 0"):
        nft(tmp_path, begins_with_two, stream)
    trainer = nft(tmp_path, right_of_each(1), stream, max_refills=0)
    trainer.train()
    trainer.assert_losses_are_the_objectives()


def test_another_version_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "version", lambda name: "1.99.0")
    monkeypatch.delitem(sys.modules, "negaware.integrations.trl")
    with pytest.raises(ImportError, match=r"trl that is installed is version 1.99.0; .* tested with trl>=1.16,<1.17: "):
        importlib.import_module("negaware.integrations.trl")
