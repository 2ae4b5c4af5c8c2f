"""What `test_trl_vllm.py` starts: `python … FOLDER`. It trains once for each shape of TRL's importance weights."""

import sys
from functools import partial
from pathlib import Path

import torch
from datasets import concatenate_datasets
from tiny_trl import nft, questions, right_of_each, steps_of
from trl.generation import vllm_generation

from negaware.rollout.vllm import _all_loaded, _pack_head_again
from tiny_models import llama
from tiny_run import VOCABULARY, tiny_tokenizer


def hand_over(generation: vllm_generation.VLLMGeneration) -> None:
    """Instead of TRL's `sync_weights`, whose `load_weights` fails where vLLM has repacked the weights for a CPU."""
    weights = generation._iter_named_params()
    with _all_loaded():
        generation.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
    generation.llm.collective_rpc(_pack_head_again)
    generation.llm.reset_prefix_cache()


vllm_generation.VLLMGeneration.sync_weights = hand_over
# TRL leaves these to vLLM: compiling takes twenty seconds, and the cache would be a third of the memory.
vllm_generation.LLM = partial(vllm_generation.LLM, enforce_eager=True, kv_cache_memory_bytes=2**28)

folder = Path(sys.argv[1])
tokens = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "eos_token_id": 1}
# Heads as wide as vLLM's CPU kernels want them; a tied output head, of which vLLM keeps a packed copy.
llama(head_dim=32, tie_word_embeddings=True, initializer_range=0.1, **tokens).save_pretrained(folder / "model")
tiny_tokenizer().save_pretrained(folder / "model")
trainers = []  # of both runs to the end: with an engine vLLM would take down torch.distributed as a whole
for mode in ("token_truncate", "sequence_mask"):
    trainer = nft(
        folder,
        right_of_each(1, 0, 0, 2),  # so that a batch of four groups takes two calls
        {"train_dataset": concatenate_datasets([questions(2)] * 6 + [questions(3)])},
        use_vllm=True,
        vllm_mode="colocate",
        vllm_importance_sampling_mode=mode,
        max_completion_length=64,
        num_iterations=2,
        max_steps=8,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    trainers.append(trainer)
    weights = [step.weights for step in steps_of(trainer)]
    seen = {"samples": trainer.samples, "parts": trainer.parts, "losses": trainer.losses, "weights": weights}
    torch.save(seen, folder / f"{mode}.pt")
