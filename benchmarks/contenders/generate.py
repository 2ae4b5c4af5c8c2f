"""transformers' own `model.generate` in bfloat16, all answers in one batch: smaller batches were slower."""

from __future__ import annotations

import time
from typing import Any

import torch
from channel import Channel, Command, Measurement
from transformers import AutoModelForCausalLM


def serve(channel: Channel, work: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Answers `{"limit": L}` with tokens and seconds of one rollout."""
    import transformers

    model = AutoModelForCausalLM.from_pretrained(work["model"], dtype=torch.bfloat16).eval()
    padding, stops = work["stop_token_ids"][0], torch.tensor(work["stop_token_ids"])

    @torch.inference_mode()
    def rollout(prompts: list[list[int]], limit: int) -> int:
        """The number of tokens sampled for these prompts, left-padded."""
        width = max(map(len, prompts))
        tokens = torch.tensor([[padding] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = model.generate(
            tokens,
            attention_mask=mask,
            num_return_sequences=work["num_completions"],
            max_new_tokens=limit,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            eos_token_id=work["stop_token_ids"],
            pad_token_id=padding,
        )[:, width:]
        stopped = torch.isin(found, stops).cumsum(-1)
        return int(((stopped == 0) | ((stopped == 1) & torch.isin(found, stops))).sum())

    def sample(command: Command) -> Measurement:
        prompts = [question["prompt_ids"] for question in work["questions"][str(command["limit"])]]
        start = time.perf_counter()
        tokens = rollout(prompts, command["limit"])
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "tokens": tokens,
            "answers": len(prompts) * work["num_completions"],
            "tokens_per_second": tokens / seconds,
        }

    sample({"limit": min(map(int, work["questions"]))})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    channel.answer_all({"versions": versions}, sample)
