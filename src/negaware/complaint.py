"""The one sentence that the user is told about an error that the user can correct."""

from __future__ import annotations


def sentence_of(error: BaseException) -> str | None:
    """The sentence that the user is told, without a traceback; None for an error of negaware, which needs one."""
    no_memory = type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error)
    if no_memory and isinstance(error, RuntimeError | MemoryError):
        return (
            f"not enough memory ({_text(error)}); lower training.micro_batch_tokens or rollout.max_sequences, or "
            "set training.activations to recomputed; `negaware plan` says what takes how much."
        )
    return _text(error) if isinstance(error, ValueError | OSError) else None


def _text(error: BaseException) -> str:
    """The error's text; for pydantic's error about options, its first one."""
    complaints = getattr(error, "errors", None)
    if not callable(complaints):
        return str(error)
    first = complaints()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the options"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"
