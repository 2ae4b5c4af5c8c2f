"""A judge of one's own, named `module:function`. How it is found and loaded is `own_code`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from negaware.own_code import OwnFunction, Purpose, find_function

JUDGE = Purpose("verifier", "a judge", "my_rules:is_right")


def find_judge(name: str, folders: Sequence[Path] = (Path(),)) -> OwnFunction:
    """The judge `function(text, problem)` of that name, from the first of the folders that has its module.

    ValueError where there is none, or where it is no function.
    """
    return find_function(name, folders, JUDGE)
