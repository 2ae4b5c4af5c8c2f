"""The house rules that a machine can check: who may import whom, and how long a file and a function may be."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "negaware"

# Package → (of our own, of others at import time, of others inside a function). Names under TYPE_CHECKING are free.
# BASE knows none of ours, and may be known to every package that imports others' code anyway: `--help` stays instant.
BASE = {"types", "files", "libraries", "validation"}
RULES: dict[str, tuple[str, str, str]] = {
    "__init__": ("", "", ""),
    "__main__": ("cli commands safe_path", "", ""),
    "types": ("", "numpy", ""),
    "arguments": ("", "", ""),
    "estimates": ("", "", ""),
    "libraries": ("", "packaging", ""),
    "safe_path": ("", "", ""),
    "cache_folder": ("", "", ""),
    "files": ("", "", ""),
    "validation": ("", "pydantic yaml", ""),
    "user_code": ("", "", ""),
    "objective_options": ("user_code objectives", "pydantic", ""),
    "ranks": ("", "torch numpy", ""),
    "runs": ("estimates", "rich plotly yaml", "tensorboard wandb trackio torch"),
    "objectives": ("", "torch jaxtyping", ""),
    "verifiers": ("safe_path user_code", "math_verify latex2sympy2_extended sympy pydantic", ""),
    "tasks": ("cache_folder verifiers", "pydantic", "datasets pyarrow reasoning_gym"),
    "models": ("cache_folder ranks", "torch transformers jaxtyping pydantic", "peft gguf safetensors"),
    "rollout": ("models tasks ranks seeds", "torch transformers pydantic numpy", "vllm safetensors"),
    "training": ("models objectives ranks", "torch numpy pydantic", ""),
    "evaluation": ("estimates verifiers tasks rollout", "numpy pydantic", ""),
    "integrations": ("objectives", "torch trl accelerate datasets verl", ""),
    "config": ("verifiers tasks models rollout training evaluation runs objective_options", "pydantic", ""),
    "seeds": ("", "", ""),
    "loop": ("estimates ranks seeds verifiers tasks models rollout training evaluation runs config", "torch", ""),
    "studies": (
        "estimates runs config loop ranks complaint user_code objective_options verifiers tasks models "
        "rollout evaluation planning",
        "rich pydantic yaml numpy",
        "matplotlib scipy torch",
    ),
    "finished_model": ("tasks models rollout evaluation", "torch", ""),
    "planning": ("config models rollout", "torch transformers numpy yaml rich", ""),
    "complaint": ("", "", ""),
    "cli": ("arguments complaint commands __main__", "", ""),
    "commands": ("arguments", "", "rich"),
}
LAZY_OURS = {"cli", "commands"}  # may reach any of our packages, inside a function: `--help` stays instant

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 100
LONGER_FILES: dict[str, str] = {}  # path → why it crosses the budget
LONGER_FUNCTIONS = {  # path:function → (its budget, why)
    "src/negaware/loop/train.py:train": (120, "the one loop, read from top to bottom"),
}

MODULES = sorted(SOURCE.rglob("*.py"))
FILES = [path for folder in ("src", "tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST, lazy: bool = False):
    """(module, inside a function?) for each import, those under TYPE_CHECKING left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [alias.name for alias in node.names] if node.module == "negaware" else [""]
            yield from ((f"{node.module}.{name}".rstrip("."), lazy) for name in names)
        yield from imports(node, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def forbidden(package: str, tree: ast.AST) -> list[str]:
    """The imports in `tree` that RULES deny to `package`."""
    ours, eager, lazily = (names.split() for names in RULES[package])
    base, found = BASE if eager else set(), []
    for module, lazy in imports(tree):
        top, _, rest = module.partition(".")
        if top == "negaware":
            known = {package, "__version__", *base, *ours}
            allowed = not rest or rest.split(".")[0] in known or (lazy and package in LAZY_OURS)
        else:
            allowed = top in sys.stdlib_module_names or top in eager or (lazy and top in lazily)
        if not allowed:
            found.append(module)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_who_imports_whom(path):
    package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    assert package in RULES, f"give {package} a line in RULES"
    found = forbidden(package, ast.parse(path.read_text()))
    assert not found


def test_engines_share_only_the_protocol():
    """`rollout/engine.py` knows types alone, and vLLM's name stands in one file."""
    assert not [
        name for name, _ in imports(ast.parse((SOURCE / "rollout" / "engine.py").read_text())) if "torch" in name
    ]
    users = {
        path.name
        for path in MODULES
        if any(name.startswith("vllm") for name, _ in imports(ast.parse(path.read_text())))
    }
    assert users <= {"vllm.py"}


def test_who_runs_a_model_need_not_know_how():
    """What is fast on the CPU or compiled for CUDA is known in `models`, and to who plans its memory."""
    for path in MODULES:
        place = str(path.relative_to(SOURCE))
        if place.startswith("models/") or place in ("planning/memory.py", "cli.py"):
            continue
        names = [name for name, _ in imports(ast.parse(path.read_text()))]
        assert not [name for name in names if name.startswith(("negaware.models.cpu", "negaware.models.cuda"))], place


@pytest.mark.parametrize(
    ("package", "code", "expected"),
    [
        ("objectives", "from negaware.training.pack import pack", ["negaware.training.pack"]),
        ("objectives", "def f():\n    import transformers", ["transformers"]),
        ("verifiers", "with suppress(ImportError):\n    import torch.nn", ["torch.nn"]),
        ("tasks", "import datasets", ["datasets"]),
        ("tasks", "def f():\n    import datasets", []),
        ("types", "if TYPE_CHECKING:\n    import torch", []),
        ("commands", "from negaware import loop", ["negaware.loop"]),
        ("commands", "from negaware.types import Group", ["negaware.types"]),
        ("models", "from negaware.types import Group", []),
        ("commands", "def f():\n    from negaware import loop", []),
        ("rollout", "from negaware import training, types", ["negaware.training"]),
    ],
)
def test_the_rule_sees_what_it_should(package, code, expected):
    assert forbidden(package, ast.parse(code)) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_size_budgets(path):
    name, text = str(path.relative_to(ROOT)), path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES or name in LONGER_FILES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            budget, _ = LONGER_FUNCTIONS.get(f"{name}:{node.name}", (MAX_FUNCTION_LINES, ""))
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= budget, f"{node.name} has {lines} lines"
