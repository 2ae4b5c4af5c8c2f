"""The free functions' public signatures: five tensors, then the options, each with its default, by keyword alone."""

import inspect

import pytest
import torch
from torch import Tensor

from negaware.objectives import dapo_loss, dr_grpo_loss, grpo_loss, nft_loss, rft_loss

TENSORS = ("logprobs", "old_logprobs", "mask", "correct", "pass_rate")
SIGNATURES = {
    nft_loss: {
        "epsilon": 1.0,
        "negative_weight": 1.0,
        "prompt_weight": "one_minus_rate",
        "ratio": "token",
        "positive_weight": 1.0,
    },
    rft_loss: {"prompt_weight": "uniform"},
    grpo_loss: {"clip": 0.2, "clip_high": None},
    dr_grpo_loss: {"clip": 0.2, "clip_high": None},
    dapo_loss: {"clip_low": 0.2, "clip_high": 0.28, "overlong_from": None, "overlong_to": None},
}


@pytest.mark.parametrize("loss", SIGNATURES, ids=lambda loss: loss.__name__)
def test_five_tensors_and_the_options_by_keyword(loss):
    parameters = list(inspect.signature(loss).parameters.values())
    tensors, options = parameters[:5], parameters[5:]
    assert tuple(parameter.name for parameter in tensors) == TENSORS
    assert {parameter.kind for parameter in tensors} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert {parameter.default for parameter in tensors} == {inspect.Parameter.empty}
    assert [parameter.kind for parameter in options] == [inspect.Parameter.KEYWORD_ONLY] * len(options)
    found = {parameter.name: parameter.default for parameter in options}
    assert list(found.items()) == list(SIGNATURES[loss].items())
    assert [type(default) for default in found.values()] == [type(default) for default in SIGNATURES[loss].values()]
    assert loss.__doc__
    assert loss.__module__.startswith("negaware.objectives.")


@pytest.mark.parametrize("loss", SIGNATURES, ids=lambda loss: loss.__name__)
def test_tensors_may_be_given_by_name_and_options_may_not_be_given_by_place(loss, batch):
    named = dict(zip(TENSORS, batch, strict=True))
    by_name, by_place = loss(**named, **SIGNATURES[loss]), loss(*batch)
    assert isinstance(by_name, Tensor)
    assert torch.equal(by_name, by_place)
    assert by_place.shape == batch[0].shape
    with pytest.raises(TypeError):
        loss(*batch, 0.5)
    with pytest.raises(TypeError, match="temperature"):
        loss(*batch, temperature=0.5)
