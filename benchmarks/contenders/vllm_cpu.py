"""vLLM's CPU build, in process. Its settings are in SETTINGS; it needs an environment of its own."""

from __future__ import annotations

import time
from typing import Any

from channel import Channel, Command, Measurement

SETTINGS: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_model_len": 1024,
    "max_num_seqs": 128,
    "enable_prefix_caching": True,
    "block_size": 32,  # the default of 128 tokens is longer than most questions, whose answers could then share nothing
    "disable_log_stats": True,
    "seed": 0,
}


def serve(channel: Channel, work: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Answers `{"limit": L}` with tokens and seconds of one rollout."""
    import torch
    import transformers
    import vllm
    from vllm import LLM, SamplingParams

    llm = LLM(model=work["model"], **SETTINGS | arguments.get("settings", {}))

    def sample(command: Command) -> Measurement:
        params = SamplingParams(
            n=work["num_completions"],
            temperature=1.0,
            max_tokens=command["limit"],
            stop_token_ids=work["stop_token_ids"],
            logprobs=0,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": q["prompt_ids"]} for q in work["questions"][str(command["limit"])]]
        llm.reset_prefix_cache()  # a new policy would have no use for the last one's keys and values
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        tokens = sum(len(completion.token_ids) for output in outputs for completion in output.outputs)
        answers = sum(len(output.outputs) for output in outputs)
        return {"seconds": seconds, "tokens": tokens, "answers": answers, "tokens_per_second": tokens / seconds}

    sample({"limit": min(map(int, work["questions"]))})
    versions = {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    channel.answer_all({"versions": versions}, sample)
