"""Versions of other people's libraries, and their errors in a line."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from negaware.libraries import UntestedVersionError, reason, require_installed, require_tested

ROOT = Path(__file__).parents[1]
EXTRAS = ("embedded", "data", "lora", "studies", "tensorboard", "trackio", "wandb")
TESTED = "vllm>=0.32,<0.33"


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1+cpu", "0.32.9rc1", "0.32.1.dev3+g12ab"])
def test_a_version_that_was_tested(version):
    require_tested(TESTED, version, "it")


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.33.0rc1", "1.0", "main", ""])
def test_a_version_that_was_not(version):
    said = f"it is version {version}; negaware was tested with {TESTED}: install that."
    with pytest.raises(UntestedVersionError, match=f"^{re.escape(said)}$"):
        require_tested(TESTED, version, "it")


@pytest.mark.parametrize("caught", [ImportError, ValueError])
def test_who_imports_and_who_reports_can_both_catch_it(caught):
    with pytest.raises(caught, match=r"^the pytest that is installed is version .*; negaware was tested with pytest<1"):
        require_installed("pytest<1", "this")


def test_a_library_that_is_missing():
    said = r"^this needs the package no-such-one, which is not installed; run: pip install 'no-such-one>=1'$"
    with pytest.raises(UntestedVersionError, match=said):
        require_installed("no-such-one>=1", "this")


def test_an_error_in_one_line():
    assert reason(ValueError("\n  the first\nthe second")) == "the first"
    assert reason(KeyError()) == "KeyError"


def test_the_oldest_versions_are_those_that_the_project_admits():
    """constraints-lowest.txt, which pip takes, says what pyproject.toml's ranges begin with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for name in EXTRAS for line in extras[name])]
    ranges = [(each.name, part) for each in map(Requirement, asked) for part in each.specifier]
    begins = {name: part.version for name, part in ranges if part.operator == ">="}
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()[1:]
    torch = re.search(r"LOWEST_TORCH \?= torch==(\S+)", (ROOT / "Makefile").read_text())
    assert torch is not None
    assert dict(line.split("==") for line in lines) | {"torch": torch[1]} == begins
