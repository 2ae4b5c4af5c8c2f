"""A micro-batch never waits for the device, on the path that CUDA takes; an optimizer step waits once."""

import pytest
import torch
from made_groups import off_policy, sampled_groups
from torch.nn.attention import flex_attention as flex
from torch.utils._python_dispatch import TorchDispatchMode

from device_reads import device_reads
from negaware.models.attention import use_own_attention
from negaware.models.decoder import CudaDecoder
from negaware.objectives import OBJECTIVES, Terms
from negaware.objectives.user_loss import user_objective
from negaware.training.options import TrainingOptions
from negaware.training.pack import answers_of, collate
from negaware.training.step import LossSettings, Trainer, answers_in
from tiny_models import llama, network


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch):
    """Answers of a question in one row, under FlexAttention; off CUDA that is refused gradients, which it does have."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)


def made_trainer(objective, **training):
    settings = {"compute_dtype": "float32", "learning_rate": 1e-3, "optimizer_steps": 1}
    loss = LossSettings(objective, {}, 0.7, 14)
    trainer = Trainer(
        network(llama(0, num_hidden_layers=1)), loss, TrainingOptions(**settings | training), num_steps=10
    )
    trainer.decoder = CudaDecoder(trainer.network.model, use_own_attention(trainer.network.model))
    return trainer


@pytest.fixture(scope="module")
def groups():
    return off_policy(sampled_groups(llama(0), num_groups=4, num_answers=4))


def reads_of(objective, groups, micro_batch_tokens=20, **training):
    """What waits for the device while a rollout is trained on, in five micro-batches at least."""
    trainer = made_trainer(objective, micro_batch_tokens=micro_batch_tokens, **training)
    run, batches = trainer.logprobs, []
    trainer.logprobs = lambda batch: batches.append(batch) or run(batch)
    with device_reads() as reads:
        trainer.step(groups, 0)
    assert len(batches) >= 5
    return reads, any(len(batch.answers) > len(batch.rows) for batch in batches)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_optimizer_step_waits_once_and_its_micro_batches_never(name, groups):
    """Of a loss of whole groups, also for the pass that brings these together."""
    reads, _ = reads_of(OBJECTIVES[name], groups[:2])
    assert reads == (2 if OBJECTIVES[name].sees_groups else 1) * ["tolist"]


def test_nor_do_micro_batches_whose_rows_share_a_question(groups):
    reads, is_shared = reads_of(OBJECTIVES["nft"], groups, 60, optimizer_steps=2)
    assert is_shared
    assert reads == 2 * ["tolist"]


def test_a_loss_of_ones_own_is_looked_at_in_the_same_moment(groups):
    def mine(answers, *, scale: float = 2.0):
        loss = torch.where(answers.mask, -scale * answers.logprobs, 0.0)
        return Terms(loss, {"right": answers.correct.sum()})

    assert reads_of(user_objective("my_losses:mine", mine), groups[:2])[0] == ["tolist"]


def test_what_the_trainer_computes_again_is_read_once_a_rollout(groups):
    reads, _ = reads_of(OBJECTIVES["nft"], groups[:2], old_logprobs="recomputed", importance_weight_cap=2.0)
    on_host = ["numpy"] * sum(len(group.completions) for group in groups[:2])
    assert reads == ["cpu", *on_host, "tolist"]


def test_what_a_micro_batch_needs_is_copied_to_the_device_without_waiting(groups):
    """On meta, whose tensors have no values: to ask for one is an error."""
    trainer, copies = made_trainer(OBJECTIVES["nft"]), []
    (micro_batches,) = trainer.pack([answers_of(group) for group in groups])

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
                copies.append(kwargs.get("non_blocking", False))
            return func(*args, **(kwargs or {}))

    with Copies():
        batch = collate(micro_batches[0].rows, "meta")
        answers = answers_in(batch, torch.zeros(len(batch.targets), device="meta"))
    assert {answers.correct.device.type, answers.mask.device.type} == {"meta"}
    assert len(copies) >= 10
    assert all(copies)
