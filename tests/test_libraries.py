"""Versions of other people's libraries, and their errors in a line."""

import re

import pytest

from negaware.libraries import UntestedVersionError, reason, require_installed, require_tested

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
