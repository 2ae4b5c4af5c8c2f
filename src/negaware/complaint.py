"""What an error says to the user: one sentence, where it is of a kind that the user can mend."""

from __future__ import annotations


def sentence_of(error: BaseException) -> str | None:
    """The sentence that the user is told, without a traceback; None for a fault of ours, which needs one."""
    if _is_lack_of_memory(error):
        return (
            f"not enough memory ({_text(error)}); lower training.micro_batch_tokens or rollout.max_sequences, or "
            "set training.activations to recomputed; `negaware plan` says what takes how much."
        )
    return _text(error) if isinstance(error, ValueError | OSError) else None


def _text(error: BaseException) -> str:
    """What an error says; of a pydantic report on an option, its first complaint."""
    complaints = getattr(error, "errors", None)
    if not callable(complaints):
        return str(error)
    first = complaints()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the options"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r}"


def _is_lack_of_memory(error: BaseException) -> bool:
    """On a GPU (torch's own error), or on the host (which has none, but a text)."""
    if not isinstance(error, RuntimeError | MemoryError):
        return False
    return type(error).__name__ in ("OutOfMemoryError", "MemoryError") or "can't allocate memory" in str(error)
