"""The contract itself: what an objective declares, what it is tried out on, and how its two sides are weighed."""

import inspect
import math
from typing import Annotated, Any, Literal

import pytest
import torch

from negaware.objectives import OBJECTIVES, Answers, Objective, Option, Terms
from negaware.objectives.contract import REQUIRED, Keyword, five_tensors, gradient_weights, keywords_of, try_out
from rounding import gamma

BOUNDS = {  # above, at least
    "asymre": {"delta": (None, None)},
    "cispo": {"cap": (0, None)},
    "dapo": {
        "clip_low": (0, None),
        "clip_high": (0, None),
    },
    "dppo": {"delta": (0, None), "cap": (0, None)},
    "dr_grpo": {"clip": (0, None), "clip_high": (0, None)},
    "grpo": {"clip": (0, None), "clip_high": (0, None)},
    "gspo": {"clip_low": (0, None), "clip_high": (0, None)},
    "infonca": {"beta": (0, None), "sft_weight": (None, 0)},
    "maxrl": {"clip": (0, None), "clip_high": (0, None)},
    "nft": {
        "epsilon": (0, None),
        "negative_weight": (None, 0),
        "prompt_weight": (None, None),
        "ratio": (None, None),
        "positive_weight": (None, 0),
    },
    "psr_nsr": {
        "positive_weight": (None, 0),
        "negative_weight": (None, 0),
        "clip": (0, None),
        "clip_high": (0, None),
    },
    "real": {"temperature": (0, None)},
    "rft": {"prompt_weight": (None, None)},
    "signed": {"prompt_weight": (None, None)},
    "topr": {},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_each_option_may_be(name):
    options = {key: keyword.option for key, keyword in OBJECTIVES[name].keywords.items()}
    assert {key: (option.above, option.at_least) for key, option in options.items()} == BOUNDS[name]
    assert all(option.help for option in options.values())


NUMBERS = [
    (name, option, above is not None)
    for name, options in BOUNDS.items()
    for option, (above, at_least) in options.items()
    if (above, at_least) != (None, None)
]


@pytest.mark.parametrize(("name", "option", "is_above"), NUMBERS)
def test_the_loss_refuses_what_lies_beyond_the_bound_itself(name, option, is_above, batch):
    """So does a free function, which no config has looked at. NFT alone takes an ε of 0, its theory's."""
    taken, refused = (1e-3, 0.0) if is_above and (name, option) != ("nft", "epsilon") else (0.0, -1e-3)
    answers = Answers(*batch, group=torch.tensor([0] * 4 + [1] * 4))
    assert OBJECTIVES[name].terms(answers, **{option: taken}).per_token.shape == batch[0].shape
    with pytest.raises(ValueError, match=f"{refused}.* (below|above) "):
        OBJECTIVES[name].terms(answers, **{option: refused})


def declared(
    answers,
    *,
    plain=1.5,
    flag=False,
    nothing=None,
    needed,
    text: "str" = "a",
    choice: Literal["a", "b"] = "b",
    noted: Annotated[float | None, "said", Option("A cap.", above=2)] = None,
    aside: Annotated[int, "said"] = 3,
):
    return Terms(torch.zeros_like(answers.logprobs))


def test_an_option_is_what_the_signature_says():
    assert keywords_of(declared) == {
        "plain": Keyword(float, 1.5, Option()),
        "flag": Keyword(bool, False, Option()),
        "nothing": Keyword(Any, None, Option()),
        "needed": Keyword(Any, REQUIRED, Option()),
        "text": Keyword(str, "a", Option()),
        "choice": Keyword(Literal["a", "b"], "b", Option()),
        "noted": Keyword(float | None, None, Option("A cap.", above=2)),
        "aside": Keyword(int, 3, Option()),
    }


def test_a_free_function_has_five_tensors_and_the_options_in_its_signature(batch):
    def mine(answers, *, scale: float = 2.0):
        """Its own words."""
        return Terms(scale * answers.logprobs)

    loss = five_tensors(mine)
    parameters = inspect.signature(loss).parameters
    assert list(parameters) == ["logprobs", "old_logprobs", "mask", "correct", "pass_rate", "scale"]
    assert (parameters["scale"].default, parameters["scale"].kind) == (2.0, inspect.Parameter.KEYWORD_ONLY)
    assert (loss.__name__, loss.__doc__, loss.__module__) == ("mine_loss", "Its own words.", __name__)
    assert torch.equal(loss(*batch, scale=3.0), 3 * batch[0])


def test_what_an_objective_is_unless_it_says_otherwise():
    mine = Objective("mine", declared, "constant")
    assert (mine.needs_group, mine.is_user_loss, mine.paper) == (True, False, "")
    assert Terms(torch.zeros(1, 1)).counts == {}


@pytest.mark.parametrize(
    ("position", "broken"),
    [
        (0, torch.zeros(8, 3, dtype=torch.float64)),
        (1, torch.zeros(8, 3, dtype=torch.float64)),
        (2, torch.ones(7, 4, dtype=torch.bool)),
        (3, torch.ones(8, 1, dtype=torch.bool)),
        (4, torch.full((1,), 0.5, dtype=torch.float64)),
        (5, torch.zeros(7, dtype=torch.int64)),
    ],
)
def test_answers_of_unequal_shapes_are_refused_as_they_are_made(position, broken, batch):
    fields = [*batch, torch.zeros(8, dtype=torch.int64)]
    Answers(*fields)
    fields[position] = broken
    with pytest.raises(Exception, match="Type-check error"):
        Answers(*fields)


# --- the reduction ---

TOKEN = ("token_mean", "sequence_mean", "constant")


def test_the_reduction_is_the_papers_unless_another_is_chosen():
    mine = Objective("mine", declared, "constant")
    for options in ({}, {"ratio": "token"}):
        assert mine.reduction_under(options) == "constant"
        for chosen in TOKEN:
            assert mine.reduction_under(options, chosen) == chosen
        with pytest.raises(
            ValueError, match=r"^reduction is sequence_sum, which is ratio sequence's alone; choose from "
        ):
            mine.reduction_under(options, "sequence_sum")


def test_a_ratio_of_whole_answers_is_summed_up():
    mine = Objective("mine", declared, "constant")
    for chosen in (None, "sequence_sum"):
        assert mine.reduction_under({"ratio": "sequence"}, chosen) == "sequence_sum"
    for chosen in TOKEN:
        with pytest.raises(ValueError, match=f"^reduction is {chosen}, but with ratio sequence an answer has one term"):
            mine.reduction_under({"ratio": "sequence"}, chosen)


def test_a_users_own_loss_may_have_any_reduction():
    own = Objective("own", declared, "constant", is_user_loss=True)
    for options in ({}, {"ratio": "sequence"}):
        assert own.reduction_under(options) == "constant"
        for chosen in (*TOKEN, "sequence_sum"):
            assert own.reduction_under(options, chosen) == chosen


# --- what options are tried out on ---


def test_a_loss_is_tried_out_on_two_groups_of_answers_of_many_lengths():
    """Short of no case that a rollout has: each group with right and wrong answers, tokens that became likelier and
    unlikelier, an answer of one token, padding; and always the same, so that what one machine refuses all do."""
    seen: list[tuple[Answers, dict[str, Any]]] = []

    def watching(answers, *, scale: float = 1.0):
        seen.append((answers, {"scale": scale}))
        return Terms(answers.logprobs)

    with torch.no_grad():
        try_out(Objective("mine", watching, "token_mean"), {"scale": 3.0})
    ((answers, options),) = seen
    assert options == {"scale": 3.0}
    lengths = [5, 1, 3, 2, 4, 2, 5, 3]
    assert answers.mask.tolist() == [[place < length for place in range(5)] for length in lengths]
    assert answers.correct.tolist() == [True, False, False, False, True, True, False, True]
    assert answers.pass_rate.tolist() == [0.25] * 4 + [0.75] * 4
    assert answers.group is not None
    assert answers.group.tolist() == [0] * 4 + [1] * 4
    sines = [[math.sin(5 * row + place) for place in range(5)] for row in range(8)]
    before = [[math.sin((5 * row + place - 1) % 40) for place in range(5)] for row in range(8)]
    kept = answers.mask
    old = torch.where(kept, -1.5 - torch.tensor(before), 0.0)
    error = 4 * gamma(8)  # a sine and a few sums, none of them above 4
    torch.testing.assert_close(answers.old_logprobs, old, rtol=0, atol=error)
    moved = torch.where(kept, torch.tensor(sines) / 2, 0.0)
    torch.testing.assert_close(answers.logprobs.detach() - answers.old_logprobs, moved, rtol=0, atol=error)
    assert (answers.logprobs[~kept] == 0).all()
    assert answers.logprobs.requires_grad


def test_a_choice_that_is_none_is_refused_before_the_loss_is_called():
    asked: list[str] = []

    def choosing(answers, *, side: Literal["left", "right"] = "left", scale: float = 1.0):
        asked.append(side)
        if scale < 0:
            raise ValueError("below 0")
        return Terms(answers.logprobs * scale)

    mine = Objective("mine", choosing, "token_mean")
    for options in ({}, {"side": "right"}, {"side": "left", "scale": 2.0}):
        try_out(mine, options)
    with pytest.raises(ValueError, match=r"^side is 'top'; choose from left, right\.$"):
        try_out(mine, {"side": "top"})
    assert asked == ["left", "right", "left"]
    with pytest.raises(ValueError, match=r"^below 0$"):
        try_out(mine, {"scale": -1.0})


# --- what each side weighs ---


def test_the_weight_of_a_side_adds_up_its_gradients_without_their_signs():
    factors = torch.tensor([[1.0, -2.0], [4.0, -8.0], [-16.0, 32.0]])
    mine = Objective("mine", lambda answers, *, scale=1.0: Terms(scale * factors * answers.logprobs), "token_mean")
    mask, zeros = torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2)
    answers = Answers(zeros, zeros, mask, torch.tensor([True, False, True]), torch.full((3,), 2 / 3))
    with torch.no_grad():
        right, wrong = gradient_weights(mine, answers, {"scale": 10.0})
    assert (float(right), float(wrong)) == (510.0, 120.0)
    assert not answers.logprobs.requires_grad
