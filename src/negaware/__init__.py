"""negaware: train a language model on its own right and wrong answers.

    from negaware import Config, compare, evaluate, grade, train

Each name is imported when it is first used, so that `negaware.objectives` needs only torch and `negaware --help` is
instant. No module may have one of these names: it would hide the function.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from negaware.config import Config
    from negaware.finished_model import evaluate
    from negaware.loop.train import train
    from negaware.studies.compare import compare
    from negaware.verifiers.grade import grade

__version__ = "0.1.0"
__all__ = ["Config", "compare", "evaluate", "grade", "train"]

_PLACES = {
    "Config": "config",
    "compare": "studies.compare",
    "evaluate": "finished_model",
    "grade": "verifiers.grade",
    "train": "loop.train",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'negaware' has no attribute {name!r}")
    return getattr(import_module(f"negaware.{_PLACES[name]}"), name)
