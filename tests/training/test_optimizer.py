"""The optimizer alone: float32 masters under a bfloat16 model, gradients added up in float32, clipping, schedules."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from negaware.models.network import keep_masters
from negaware.training.optimizer import MasterOptimizer
from negaware.training.options import TrainingOptions
from rounding import UNIT, assert_within, exactly, gamma


def make_optimizer(model: nn.Module, num_rollouts: int = 10, **options) -> MasterOptimizer:
    masters = keep_masters(model, options.pop("dtype", next(model.parameters()).dtype))
    defaults = {"weight_decay": 0.0, "learning_rate": 1e-5}
    return MasterOptimizer(model, masters, TrainingOptions(**defaults | options), num_rollouts)


def bfloat16_ones() -> nn.Linear:
    layer = nn.Linear(4, 4, bias=False).to(torch.bfloat16)
    nn.init.ones_(layer.weight)
    return layer


def update(optimizer: MasterOptimizer, layer: nn.Linear, upstream: float = 1.0) -> None:
    (layer(torch.full((1, 4), upstream, dtype=layer.weight.dtype)).sum()).backward()
    optimizer.step(optimizer.gradient_norm())


def test_small_updates_survive_in_the_masters_where_bfloat16_loses_them():
    layer, alone = bfloat16_ones(), bfloat16_ones()
    optimizer, plain = make_optimizer(layer, 1000), torch.optim.AdamW(alone.parameters(), lr=1e-5, weight_decay=0.0)
    for _ in range(400):
        update(optimizer, layer)
        plain.zero_grad()
        alone(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        plain.step()
    assert torch.equal(alone.weight, torch.ones_like(alone.weight))  # 1 − 1e-5 is 1 in bfloat16, 400 times over
    # Below 1 a sum is rounded by half a unit at each of the 400 steps. AdamW's mean of squares may be a thousand units
    # away, so a step by half of that, and all of them (0.004) by four halves more.
    assert_within(optimizer.masters["weight"], torch.full((4, 4), 1 - 400e-5, dtype=torch.float64), 405 * UNIT / 2)
    assert torch.equal(layer.weight, optimizer.masters["weight"].to(torch.bfloat16))
    assert (layer.weight < 1).all()


def test_the_masters_are_the_weights_as_they_were_loaded():
    layer = nn.Linear(4, 4)
    layer.bias.requires_grad = False
    loaded = layer.weight.detach().clone()
    optimizer = make_optimizer(layer, dtype=torch.bfloat16)
    assert torch.equal(optimizer.masters["weight"], loaded)
    assert torch.equal(layer.weight, loaded.to(torch.bfloat16))
    assert layer.bias.dtype == torch.bfloat16


def test_in_float32_master_and_parameter_are_one():
    layer = nn.Linear(4, 4)
    optimizer = make_optimizer(layer)
    before = layer.weight.detach().clone()
    update(optimizer, layer)
    assert optimizer.masters["weight"].data_ptr() == layer.weight.data_ptr()
    assert not torch.equal(before, layer.weight)


def test_gradients_are_added_up_in_float32():
    """One large and many small gradients: in bfloat16 256 + 0.5 is 256, however often."""
    layer = bfloat16_ones()
    optimizer = make_optimizer(layer)
    for value in (256.0, *[0.5] * 64):
        layer(torch.full((1, 4), value, dtype=torch.bfloat16)).sum().backward()
        assert layer.weight.grad is None
    assert optimizer.masters["weight"].grad.dtype == torch.float32
    assert torch.equal(optimizer.masters["weight"].grad, torch.full((4, 4), 288.0))


def test_a_tied_weight_collects_both_gradients_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    optimizer = make_optimizer(model)
    assert list(optimizer.masters) == ["embedding.weight"]
    tokens = torch.tensor([1, 4])
    weight = model.embedding.weight.detach().clone().double().requires_grad_()
    (exact,) = exactly(lambda: torch.autograd.grad((weight[tokens] @ weight.T).pow(2).sum(), weight))
    model.head(model.embedding(tokens)).pow(2).sum().backward()
    exact.assert_near(optimizer.masters["embedding.weight"].grad)


def test_frozen_parameters_stay():
    layer = nn.Linear(3, 3)
    layer.bias.requires_grad_(False)
    optimizer = make_optimizer(layer)
    before = layer.bias.clone()
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step(optimizer.gradient_norm())
    assert list(optimizer.masters) == ["weight"]
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize(("size", "factor"), [(0.1, 1.0), (100.0, 1 / 400)])
def test_gradients_are_clipped_to_the_norm_and_no_further(size, factor, monkeypatch):
    layer = nn.Linear(4, 4, bias=False)
    optimizer = make_optimizer(layer, max_grad_norm=1.0)
    layer(torch.full((1, 4), size)).sum().backward()
    norm = optimizer.gradient_norm()
    assert float(norm) == pytest.approx(4 * size, rel=gamma(18))  # a square each, their sum, its root; size is rounded
    used = {}
    monkeypatch.setattr(optimizer.adamw, "step", lambda: used.update(g=optimizer.masters["weight"].grad.clone()))
    optimizer.step(norm)
    exact = torch.full((4, 4), size * factor, dtype=torch.float64)
    # What torch divides by is the norm and 1e-6 more, which is 2.5e-9 of 400.
    assert_within(used["g"], exact, exact * (gamma(22) + 1e-6 / (4 * size)))
    assert optimizer.masters["weight"].grad is None


def test_weight_decay_is_decoupled():
    layer = nn.Linear(4, 4, bias=False)
    optimizer = make_optimizer(layer, weight_decay=0.1, learning_rate=1e-2)
    before = layer.weight.detach().clone()
    (layer(torch.ones(1, 4)) * 0).sum().backward()
    optimizer.step(optimizer.gradient_norm())
    exact = before.double() * (1 - 0.1 * 1e-2)
    assert_within(layer.weight, exact, gamma(2) * exact.abs())  # the factor is rounded, and the product


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.8)])
def test_updates_are_adamws(betas):
    """Three steps with gradients 1, −2, 3 by the formula (Loshchilov and Hutter 2019), in float64 by hand."""
    layer = nn.Linear(4, 1, bias=False)
    nn.init.ones_(layer.weight)
    options = {"betas": betas, "learning_rate": 0.1, "weight_decay": 0.2, "max_grad_norm": 100.0}
    optimizer = make_optimizer(layer, **options)
    optimizer.tensors()  # makes AdamW's state, which must be the state that AdamW begins with
    weight, first, second = 1.0, 0.0, 0.0
    for step, gradient in enumerate((1.0, -2.0, 3.0), start=1):
        first = betas[0] * first + (1 - betas[0]) * gradient
        second = betas[1] * second + (1 - betas[1]) * gradient**2
        mean, spread = first / (1 - betas[0] ** step), math.sqrt(second / (1 - betas[1] ** step))
        weight = weight * (1 - 0.1 * 0.2) - 0.1 * mean / (spread + 1e-8)
        update(optimizer, layer, gradient)
        # Each of three steps: a dozen float32 operations make the update, which is at most 0.3, and three the weight.
        error = step * (gamma(12) * 0.3 + gamma(3) * 1.3)
        assert_within(layer.weight, torch.full((1, 4), weight, dtype=torch.float64), error)


def rates(num_rollouts: int, steps: Sequence[int], **options) -> list[float]:
    """The learning rate of each optimizer step, where rollout i makes `steps[i]` of them."""
    optimizer = make_optimizer(nn.Linear(1, 1), num_rollouts, learning_rate=1.0, **options)
    found = []
    for optimizer.rollouts_done, num_steps in enumerate(steps):
        for index in range(num_steps):
            optimizer.place = (index, num_steps)
            found.append(optimizer.learning_rate())
    return found


def test_schedules():
    assert rates(5, [1] * 5) == [1.0] * 5
    assert rates(6, [1] * 6, warmup_rollouts=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert rates(5, [1] * 4 + [2], warmup_rollouts=4, schedule="cosine")[-2:] == pytest.approx([1.0, 0.5])
    cosine = rates(10, [1] * 10, schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.9)))  # the last step still trains
    assert cosine == sorted(cosine, reverse=True)
    warm = rates(12, [1] * 12, schedule="cosine", warmup_rollouts=2)
    assert warm[:3] == [0.5, 1.0, 1.0]
    assert warm[2:] == pytest.approx(cosine)
    assert rates(3, [1] * 3, schedule="cosine", warmup_rollouts=2) == pytest.approx([0.5, 1.0, 1.0])
    assert rates(2, [1] * 2, schedule="cosine", warmup_rollouts=2) == pytest.approx([0.5, 1.0])
    optimizer = make_optimizer(nn.Linear(1, 1), 4, learning_rate=1.0, schedule="cosine")
    optimizer.rollouts_done = 6  # resumed with fewer than it has done: it doesn't rise again
    assert optimizer.learning_rate() == pytest.approx(0, abs=1e-12)
    only_warm = make_optimizer(nn.Linear(1, 1), 2, learning_rate=1.0, schedule="cosine", warmup_rollouts=2)
    only_warm.rollouts_done = 2  # nothing is left after the warm-up that could be divided by
    assert only_warm.learning_rate() == 1.0


def test_schedules_count_rollouts():
    """Ten rollouts of warm-up at sixteen updates each are 160 updates; a short rollout goes as far as a whole one."""
    warm = rates(320, [16] * 12, warmup_rollouts=10)
    assert warm[:160] == pytest.approx([(step + 1) / 160 for step in range(160)])
    assert warm[160:] == [1.0] * 32
    assert rates(9, [4, 1, 2], warmup_rollouts=2) == [0.125, 0.25, 0.375, 0.5, 1.0, 1.0, 1.0]
    short = rates(4, [2, 1, 2, 2], schedule="cosine")
    assert short == pytest.approx([0.5 * (1 + math.cos(math.pi * at / 8)) for at in (0, 1, 2, 4, 5, 6, 7)])


def test_the_first_step_trains_at_the_warm_ups_first_rate():
    layer = nn.Linear(2, 2, bias=False)
    optimizer = make_optimizer(layer, learning_rate=1e-2, warmup_rollouts=4)
    before = layer.weight.detach().clone()
    update_size = 1e-2 / 4  # AdamW's first update is the learning rate itself
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step(optimizer.gradient_norm())
    # The new weight is rounded at its own size, at most 0.71; AdamW adds 1e-8 to the 1 that it divides by.
    exact = torch.full((2, 2), update_size, dtype=torch.float64)
    assert_within(before.double() - layer.weight.double(), exact, UNIT + (gamma(12) + 1e-8) * update_size)


def test_tensors_are_the_very_ones_and_there_before_the_first_step():
    layer = bfloat16_ones()
    optimizer = make_optimizer(layer)
    tensors = optimizer.tensors()
    assert set(tensors) == {"master/weight", "step/weight", "exp_avg/weight", "exp_avg_sq/weight"}
    update(optimizer, layer)
    assert float(tensors["step/weight"]) == 1
    assert tensors["exp_avg/weight"].abs().sum() > 0
    assert tensors["master/weight"] is optimizer.masters["weight"]


def test_adamws_state_is_where_its_master_is():
    tensors = make_optimizer(nn.Linear(2, 2, device="meta")).tensors()
    assert len(tensors) == 8
    assert {tensor.device.type for tensor in tensors.values()} == {"meta"}
