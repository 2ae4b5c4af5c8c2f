"""The measure of rounding itself: real results lie within it, and what isn't rounding doesn't."""

import copy
import math

import pytest
import torch

from rounding import UNIT, exact_logprobs, exactly
from tiny_models import MODELS, each_model

ANSWERS = [((5, 9, 30), (7, 8, 2, 11)), ((4,), (3, 3, 40, 1, 2))]


def logprobs(model: torch.nn.Module, dtype: torch.dtype = torch.float32) -> list[float]:
    model, found = copy.deepcopy(model).to(dtype), []
    for prompt, answer in ANSWERS:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].float()
        found += logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()
    return found


@pytest.mark.parametrize("name", each_model())
def test_a_models_float32_is_within_its_rounding_and_not_beyond_by_far(name: str) -> None:
    model = MODELS[name](0)
    exact = exact_logprobs(model, ANSWERS)
    exact.assert_near(logprobs(model))
    assert exact.error < 1e-4 * exact.value.norm()  # a tenth of what a thousandth in every number would be
    with pytest.raises(AssertionError, match="where rounding allows"):
        exact.assert_near(logprobs(model, torch.bfloat16))
    exact_logprobs(model, ANSWERS, unit=torch.finfo(torch.bfloat16).eps / 2).assert_near(
        logprobs(model, torch.bfloat16)
    )


@pytest.mark.parametrize("name", each_model())
def test_weights_that_are_off_by_a_thousandth_are_no_rounding(name: str) -> None:
    model = MODELS[name](0)
    exact = exact_logprobs(model, ANSWERS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.001)
    with pytest.raises(AssertionError, match="where rounding allows"):
        exact.assert_near(logprobs(model))


def test_one_sums_error_is_what_the_formula_says() -> None:
    """√n units of Σ|terms| and two of the sum, up or down, three times their root mean square."""
    terms = torch.randn(400, dtype=torch.float64)
    (found,) = exactly(lambda: [terms.sum()], trials=200)
    wanted = math.hypot(20 * UNIT * float(terms.abs().sum()), 2 * UNIT * float(terms.sum()))
    assert found.value == terms.sum()
    assert 0.8 * 3 * wanted < found.error < 1.2 * 3 * wanted
    assert found.value.dtype == torch.float64


def test_what_asks_for_float32_is_float64_there() -> None:
    x = torch.tensor([1 + 2.0**-40], dtype=torch.float64)
    results = exactly(lambda: [x.float(), x.to(torch.float32), torch.softmax(x, 0, dtype=torch.float32) * x])
    assert all(torch.equal(found.value, x) for found in results)
