"""What the tests of the plan plan for: the tiny run, and the paper's recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from negaware.config import parse_config, parse_overrides, read_config, set_field
from negaware.planning.setting import Setting, setting_of
from tiny_run import tiny_config

ROOT = Path(__file__).parents[1]
RECIPES = {"7b": "Qwen2.5-Math-7B", "32b": "Qwen2.5-32B"}


def tiny_setting(folder: Path, ranks: int = 1, device: str = "cpu", **changes: object) -> Setting:
    return setting_of(parse_config(tiny_config(folder, **changes)), ranks, device)


def recipe(size: str, ranks: int, *overrides: str, advised: Sequence[str] = ()) -> Setting:
    """The setting of a recipe; what is `advised` takes the place of an override of the same field."""
    config, model = ROOT / f"configs/paper/nft_{size}.yaml", ["--model", str(ROOT / "configs/models" / RECIPES[size])]
    data = read_config(config)
    for field, value in [*parse_overrides([*model, *overrides]), *parse_overrides(advised)]:
        set_field(data, field, value)
    return setting_of(parse_config(data), ranks, "cuda")
