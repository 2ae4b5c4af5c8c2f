"""Where the mask is 0 nothing counts, whatever stands there; and the mask's dtype is the caller's choice."""

import pytest
import torch
from torch.autograd import gradcheck

from rounding import exactly

INFINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("new", INFINITE)
@pytest.mark.parametrize("old", INFINITE)
def test_masked_garbage_gives_no_loss_and_no_gradient(new, old, form, batch):
    objective, options = form
    logprobs, old_logprobs, mask, correct, rate = batch
    clean = objective(*batch, **options)
    leaf = torch.where(mask, logprobs, new).requires_grad_()
    loss = objective(leaf, torch.where(mask, old_logprobs, old), mask, correct, rate, **options)
    assert loss[~mask].eq(0).all()
    torch.testing.assert_close(loss, clean, rtol=0, atol=0)
    loss.sum().backward()
    assert leaf.grad[~mask].eq(0).all()
    assert leaf.grad.isfinite().all()
    counts = objective.counts(leaf.detach(), torch.where(mask, old_logprobs, old), mask, correct, rate, **options)
    assert counts == objective.counts(*batch, **options)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32, torch.float64])
def test_mask_dtype_does_not_matter(dtype, form, batch):
    objective, options = form
    cast = (*batch[:2], batch[2].to(dtype), *batch[3:])
    torch.testing.assert_close(objective(*cast, **options), objective(*batch, **options), rtol=0, atol=0)
    assert objective.counts(*cast, **options) == objective.counts(*batch, **options)


def test_an_answer_without_tokens_counts_for_nothing(form, batch):
    objective, options = form
    mask = batch[2].clone()
    mask[3] = False
    leaf = batch[0].clone().requires_grad_()
    objective(leaf, batch[1], mask, *batch[3:], **options).sum().backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad[3].eq(0).all()


def test_gradient_is_the_finite_difference_where_the_loss_is_smooth(form, batch):
    """For NFT, ratios that stay above a low floor: where the floor acts, value and gradient differ by design.

    A weight that has no gradient is held still: the loss is then linear in log R, its gradient the loss over log R.
    """
    objective, options = form
    logprobs, *others = batch
    if objective.name in ("cispo", "topr") or (objective.name == "dppo" and options):
        leaf = logprobs.clone().requires_grad_()
        loss = objective(leaf, *others, **options)
        (found,) = torch.autograd.grad(loss.sum(), leaf)
        divisor = 1 if objective.name == "dppo" else torch.where(others[1], logprobs - others[0], 1)
        torch.testing.assert_close(found, loss.detach() / divisor, rtol=1e-9, atol=1e-12)
        assert objective.counts(*batch, **options)["at_cap"] > 0 or not options
        return
    if objective.name == "nft":
        logprobs, options = others[0] + (logprobs - others[0]) / 8, {**options, "epsilon": 0.01}
        assert objective.counts(logprobs, *others, **options)["at_epsilon"] == 0
    leaf = logprobs.clone().requires_grad_()
    if objective.sees_groups:  # a token has the gradient of its whole group's loss, which is spread over its tokens
        assert gradcheck(lambda x: objective(x, *others, **options).sum(), (leaf,), eps=1e-7, atol=1e-6)
        return
    assert gradcheck(lambda x: objective(x, *others, **options), (leaf,), eps=1e-7, atol=1e-6)


def test_old_logprobs_get_no_gradient(form, batch):
    objective, options = form
    old = batch[1].clone().requires_grad_()
    loss = objective(batch[0].clone().requires_grad_(), old, *batch[2:], **options)
    loss.sum().backward()
    assert old.grad is None


def test_float32_is_float64_but_for_rounding(form, batch):
    objective, options = form
    single = tuple(tensor.float() if tensor.is_floating_point() else tensor for tensor in batch)
    double = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in single)
    loss = objective(*single, **options)
    assert loss.dtype == torch.float32
    exactly(lambda: [objective(*double, **options)])[0].assert_near(loss)
