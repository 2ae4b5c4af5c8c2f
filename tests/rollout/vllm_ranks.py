"""What test_vllm.py starts with torchrun: `vllm_ranks.py MODEL TENSOR_PARALLEL OUTPUT` samples on every rank."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from negaware.rollout.engine import Request, SamplingParams
from negaware.rollout.options import VLLMOptions
from negaware.rollout.vllm import VLLMEngine


def main() -> None:
    model, tensor_parallel, output = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    options = VLLMOptions(tensor_parallel=tensor_parallel, cache_gib=0.02)
    engine = VLLMEngine(model, "float32", 256, options, max_sequences=6)
    weights = AutoModelForCausalLM.from_pretrained(model).named_parameters()
    engine.load_weights(((name, weight * 1.1) for name, weight in weights), version=3)
    prompts = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10]]
    # With an engine a rank, each has its share of the prompts; a group of ranks has the same ones.
    share = list(range(rank, len(prompts), 2)) if tensor_parallel == 1 else list(range(len(prompts)))
    params = SamplingParams(12, stop_token_ids=(1, 2))
    requests = [Request.new(prompts[i], params, 2, seed=5, index=i) for i in share]
    orders = [request.seeds for request in requests]
    answers = {done.seed: done for step in engine.run(requests) for done in step}
    groups = [[answers[seed] for seed in order] for order in orders]
    total = torch.tensor(rank + 1.0)
    dist.all_reduce(total)  # our own group still works beside vLLM's
    found = {
        index: [{"token_ids": done.token_ids.tolist(), "spans": done.spans} for done in group]
        for index, group in zip(share, groups, strict=True)
    }
    told = {"total": float(total), "groups": found, "shared_memory": os.environ["VLLM_DIST_IDENT"]}
    (output / f"{rank}.json").write_text(json.dumps(told))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
