"""Chat messages to prompt tokens, and answer tokens to text, with a model's own tokenizer and chat template.

A chat template is a program that came with the model: whatever it raises is one sentence, and it is ended.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase

from negaware.libraries import reason

RENDER_SECONDS = 5.0
"""Of one prompt, which takes a millisecond."""


class _EndlessTemplateError(Exception):
    """It has been rendering for RENDER_SECONDS."""


@dataclass(frozen=True, slots=True)
class Codec:
    """Chat messages → prompt tokens, and answer tokens → text, with one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: tuple[int, ...]

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt's tokens, ready for the assistant's answer. ValueError if the chat template can't make them."""
        try:
            with _ended():
                rendered: Any = self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                )
        except _EndlessTemplateError:
            raise self._unusable(messages, f"it isn't done after {RENDER_SECONDS:g} seconds") from None
        except Exception as error:  # whatever a program of others may raise
            raise self._unusable(messages, reason(error)) from error
        if not rendered:
            raise self._unusable(messages, "nothing comes out")
        return list(rendered)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The answer's text, special tokens left out."""
        text = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _unusable(self, messages: Sequence[Mapping[str, str]], why: str) -> ValueError:
        roles = ", ".join(message.get("role", "none") for message in messages)
        without = "leave the task's system_prompt out, or " if "system" in roles else ""
        return ValueError(
            f"The chat template of {self.tokenizer.name_or_path!r} can't be used for messages of the roles {roles} "
            f"({why}); {without}put another chat_template.jinja into the model's folder."
        )


@contextmanager
def _ended() -> Iterator[None]:
    """A block that is ended by _EndlessTemplateError; on the main thread only, where Python meets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signal_number: int, frame: FrameType | None) -> None:
        raise _EndlessTemplateError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, RENDER_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
