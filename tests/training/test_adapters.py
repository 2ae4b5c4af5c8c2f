"""A step with LoRA: adapters alone change, and what training holds in memory shrinks to them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from made_groups import prompts_and_tokens, sampled_groups

from negaware.training.pack import Row, answers_of, collate
from rounding import exact_logprobs
from tiny_models import MODELS, RANK, adapted, adapters, llama


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "mistral"])  # fused, and by transformers
def test_a_step_changes_adapters_only_and_the_sampler_follows(name: str, dtype: str, make_trainer: Any) -> None:
    model = adapted(MODELS[name](0).to(getattr(torch, dtype)))
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    trainer = make_trainer(model, compute_dtype=dtype, learning_rate=0.05)
    assert (trainer.decoder.kind != "transformers") == (name == "llama")
    for seed in range(3):
        groups = sampled_groups(model, seed=seed)
        plain = adapted(MODELS[name](0))  # no stream of residuals that is kept in float32
        plain.load_state_dict(model.state_dict())
        allowed = exact_logprobs(
            plain, prompts_and_tokens(groups), unit=torch.finfo(model.dtype).eps / 2
        ).mean_difference()
        assert trainer.step(groups, seed)["train/sampler_difference"] <= allowed
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, before[key]) != ("lora_" in key)


def test_a_step_begins_with_the_weights_as_they_are(make_trainer: Any) -> None:
    """They may have been read from a checkpoint since: what was merged from others counts no more."""
    model = adapted(llama(0))
    trainer, groups = make_trainer(model, learning_rate=1e-9), sampled_groups(model, num_groups=2)
    trainer.step(groups, 0)
    with torch.no_grad():
        trainer.logprobs(collate([Row((answers_of(groups[0])[0],))]))  # merges what the weights are now
        for parameter in adapters(model).values():
            parameter.mul_(1.5)
        anew = []
        for group in groups:
            done = []
            for one in group.completions:
                sequence = torch.tensor([[*group.prompt_ids, *one.token_ids]])
                logprobs = model(sequence).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
                done.append(replace(one, logprobs=logprobs[range(one.num_tokens), one.token_ids].numpy()))
            anew.append(replace(group, completions=tuple(done)))
    allowed = exact_logprobs(model, prompts_and_tokens(anew)).mean_difference()
    assert trainer.step(anew, 0)["train/sampler_difference"] <= allowed
    assert trainer.step(groups, 0)["train/sampler_difference"] > 0.01


def test_gradients_and_optimizer_shrink_to_the_adapters(make_trainer: Any) -> None:
    """Counted on the real tensors of a real step in bfloat16: 4 + 4 + 8 bytes a trained weight, 2 a frozen one."""
    counted = {}
    for kind in ("whole", "adapters"):
        model = llama(0) if kind == "whole" else adapted(llama(0).bfloat16())
        trainer = make_trainer(model, compute_dtype="bfloat16")
        optimizer = trainer.optimizer
        gradients: list[int] = []
        optimizer.adamw.register_step_pre_hook(
            lambda *_, masters=optimizer.masters, found=gradients: found.append(
                sum(master.grad.nbytes for master in masters.values())
            )
        )
        trainer.step(sampled_groups(model), 0)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        moments = sum(state[key].nbytes for state in optimizer.adamw.state.values() for key in state if key != "step")
        masters = sum(master.nbytes for master in optimizer.masters.values())
        assert (masters, gradients, moments) == (4 * trained, [4 * trained], 8 * trained)
        assert sum(p.nbytes for p in model.parameters()) == 2 * sum(p.numel() for p in model.parameters())
        assert all(parameter.grad is None for parameter in model.parameters())
        counted[kind] = masters + gradients[0] + moments
    width, inner, keys, layers, vocabulary = 32, 48, 16, 2, 61
    matrices = 2 * [(width, width)] + 2 * [(keys, width)] + 2 * [(inner, width)] + [(width, inner)]
    of_adapters = layers * sum(RANK * (rows + columns) for rows, columns in matrices)
    of_model = layers * (sum(rows * columns for rows, columns in matrices) + 2 * width) + 2 * vocabulary * width + width
    assert counted["adapters"] * of_model == counted["whole"] * of_adapters
    assert counted["adapters"] < counted["whole"] / 3
