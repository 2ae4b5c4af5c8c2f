"""What Python code is given by `from negaware import …`."""

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import negaware
from negaware.config import parse_config
from tiny_run import tiny_config, write_tiny_config


def test_importing_is_instant_and_no_module_hides_a_function() -> None:
    code = "import sys, negaware; print([n for n in ('torch', 'numpy', 'pydantic') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    for name in negaware.__all__:
        assert callable(getattr(negaware, name))
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"negaware.{name}")
    assert set(negaware.__all__) <= set(dir(negaware))
    with pytest.raises(AttributeError, match="no attribute 'treat'"):
        negaware.treat  # noqa: B018


def test_train_then_evaluate_then_grade(tmp_path: Path) -> None:
    config = parse_config(tiny_config(tmp_path, run__steps=1, evaluation__during=None))
    assert isinstance(config, negaware.Config)
    folder = negaware.train(config)
    result = negaware.evaluate(
        folder / "model", str(tmp_path / "test.jsonl"), max_new_tokens=6, num_problems=3, samples=2
    )
    assert [len(each.answers) for each in result.results] == [2] * 3
    verdicts = negaware.grade([r"\boxed{4}", "no idea"], ["4", "4"])
    assert [verdict.reason for verdict in verdicts] == ["correct", "wrong"]
    with pytest.raises(ValueError, match="a gold answer for each prediction, got 1 for 2"):
        negaware.grade(["1", "2"], ["1"])


def test_what_the_commands_refuse_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names no run\.folder"):
        negaware.train(parse_config(tiny_config(tmp_path) | {"run": {"steps": 1}}))
    with pytest.raises(ValueError, match="temperature is 0 and samples is 2"):
        negaware.evaluate("nowhere", "gsm8k", samples=2, temperature=0)
    for vary, said in (({}, "needs fields to vary"), ({"objective": ["nft", "nft"]}, "different values")):
        with pytest.raises(ValueError, match=said):
            negaware.compare("nowhere.yaml", vary)


def test_the_installed_script_is_there() -> None:
    """As pyproject names it."""
    scripts = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["negaware"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.slow
def test_compare(tmp_path: Path) -> None:
    """In a process of its own: its runs are forks of it."""
    config = write_tiny_config(tmp_path, run__steps=1)
    code = (
        "from negaware import compare\n"
        f"found = compare({str(config)!r}, {{'objective': ['nft', 'rft']}}, seeds=[0, 1])\n"
        "print(sorted((run.variant, run.seed) for run in found.runs))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.splitlines()[-1] == "[('nft', 0), ('nft', 1), ('rft', 0), ('rft', 1)]"
