"""The draw itself: exact inverse-transform sampling, its edges, and what top-k and top-p leave."""

import pytest
import torch

from negaware.rollout.engine import SamplingParams
from negaware.rollout.sampling import completion_uniforms, restrict, sample_tokens
from negaware.seeds import completion_seed
from rounding import assert_within, gamma

PLAIN = SamplingParams(max_new_tokens=1)
SMALLEST = 2.0**-53  # the smallest that `completion_uniforms` can give


def draw(logits: torch.Tensor, uniforms: torch.Tensor, params: SamplingParams = PLAIN):
    """One row of logits for every uniform."""
    return sample_tokens(logits.expand(len(uniforms), -1), params, uniforms)


@pytest.mark.parametrize("num_columns", [1, 2, 255, 256, 257, 700, 1024])
def test_frequencies_follow_the_softmax(num_columns):
    """Evenly spread uniforms through the inverse CDF: each column gets its share almost exactly, in order."""
    logits = 2 * torch.randn(1, num_columns, generator=torch.Generator().manual_seed(num_columns))
    num_draws = 40_000
    uniforms = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws
    tokens = torch.cat([draw(logits, part)[0] for part in uniforms.split(4000)])
    counts = torch.bincount(tokens, minlength=num_columns).double()
    expected = logits[0].double().softmax(-1) * num_draws
    assert (counts - expected).abs().max() <= 1.01  # an interval of length np holds np ± 1 of evenly spread points
    assert (tokens.diff() >= 0).all()


def test_random_uniforms_pass_a_chi_square_test():
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(0))
    uniforms = torch.cat([completion_uniforms(completion_seed(0, index, 0), 50) for index in range(1000)])
    tokens = torch.cat([draw(logits, part)[0] for part in uniforms.split(5000)])
    expected = logits[0].softmax(-1) * len(uniforms)
    chi_square = ((torch.bincount(tokens, minlength=300) - expected) ** 2 / expected).sum()
    assert 299 - 4 * 598**0.5 < chi_square < 299 + 4 * 598**0.5


def test_logprobs_are_log_softmax_of_the_tempered_logits():
    logits = 3 * torch.randn(50, 333, generator=torch.Generator().manual_seed(1))
    uniforms = completion_uniforms(3, 50)
    tokens, logprobs = sample_tokens(logits, SamplingParams(1, temperature=0.7), uniforms)
    exact = logits.double() / 0.7
    expected = exact.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    # Quotient, difference from the largest, exponential (2) and logarithm (2); between them a sum of 333 terms.
    largest = exact.abs().amax(-1)
    assert_within(logprobs, expected, 2 * gamma(6) * largest + gamma(333 + 6))
    assert logprobs.dtype == torch.float32


def test_greedy_takes_the_best_and_keeps_the_models_logprob():
    logits = torch.tensor([[0.0, 5.0, 1.0], [2.0, 1.0, 2.5]], dtype=torch.bfloat16)
    tokens, logprobs = sample_tokens(logits, SamplingParams(1, temperature=0.0), torch.ones(2, dtype=torch.float64))
    assert tokens.tolist() == [1, 2]
    assert torch.allclose(logprobs, logits.float().log_softmax(-1).amax(-1))


@pytest.mark.parametrize("num_columns", [3, 256, 300, 515])
def test_both_ends_of_the_uniforms_fall_on_columns_with_mass(num_columns):
    """u = 1 means the last column with any mass, the smallest u the first, and −∞ columns none."""
    logits = torch.full((1, num_columns), -torch.inf)
    with_mass = [1, num_columns // 2, num_columns - 2]
    logits[0, with_mass] = torch.tensor([0.3, -1.0, 0.2][: len(with_mass)])
    tokens, logprobs = draw(logits, torch.tensor([SMALLEST, 1.0], dtype=torch.float64))
    assert tokens.tolist() == [with_mass[0], with_mass[-1]]
    assert logprobs.isfinite().all()


@pytest.mark.parametrize("num_columns", [255, 256, 300, 1000])
def test_the_whole_mass_ends_at_the_last_column_with_any(num_columns):
    """The block's float32 sum is often a hair above the float64 sum of its columns: u = 1 must not fall out of it."""
    logits = torch.randn(500, num_columns, generator=torch.Generator().manual_seed(0))
    logits[:, 250:255] = -torch.inf
    last = num_columns - 1 if num_columns > 255 else 249
    tokens, _ = sample_tokens(logits, PLAIN, torch.ones(500, dtype=torch.float64))
    assert (tokens == last).all()


def test_columns_at_minus_infinity_are_never_chosen():
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 600, generator=generator)
    forbidden = torch.rand(600, generator=generator) < 0.9
    forbidden[256:512] = True  # a whole block of them
    logits[0, forbidden] = -torch.inf
    uniforms = torch.cat([(torch.arange(5000, dtype=torch.float64) + 1) / 5000, torch.tensor([SMALLEST])])
    tokens, _ = draw(logits, uniforms)
    assert not forbidden[tokens].any()
    assert tokens.unique().numel() == (~forbidden).sum() > 30


def test_a_column_with_almost_no_mass_is_reached_by_no_rounding_error():
    """Two levels of sums round differently; the rest at a block's end must still land inside the block."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(64, 49_152, generator=generator)
    ends = logits.double().softmax(-1).cumsum(-1)
    boundary = ends[:, 255::256]  # uniforms just at the end of each block
    for column in range(0, boundary.shape[1], 16):
        tokens, _ = sample_tokens(logits, PLAIN, boundary[:, column].clamp(max=1.0))
        assert ((tokens - (256 * column + 255)).abs() <= 1).all()


@pytest.mark.parametrize(("top_k", "kept"), [(0, 4), (1, 1), (2, 2), (3, 3), (4, 4), (99, 4)])
def test_top_k(top_k, kept):
    logits = torch.tensor([[0.1, 2.0, -1.0, 0.7]])
    restricted = restrict(logits, top_k, 1.0)
    assert restricted.isfinite().sum() == kept
    assert restricted[restricted.isfinite()].tolist() == logits[restricted.isfinite()].tolist()
    assert restricted.argmax() == 1


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1e-9, [1]), (0.49, [1]), (0.51, [1, 3]), (0.74, [1, 3]), (0.76, [0, 1, 3]), (0.99, [0, 1, 2, 3])],
)
def test_top_p_keeps_the_token_that_crosses_it(top_p, kept):
    logits = torch.tensor([[0.15, 0.5, 0.1, 0.25]]).log()
    assert restrict(logits, 0, top_p).isfinite()[0].nonzero()[:, 0].tolist() == kept


def test_top_p_works_on_what_top_k_left():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    # of the two best, 4/7 = 0.571 already reaches 0.55; of all four 0.4 would not
    assert restrict(logits, 2, 0.55).isfinite()[0].tolist() == [True, False, False, False]
    assert restrict(logits, 0, 0.55).isfinite()[0].tolist() == [True, True, False, False]


def test_rows_are_restricted_one_by_one():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7]]).log()
    assert restrict(logits, 0, 0.6).isfinite().tolist() == [[True, False, False], [False, False, True]]


def test_seeds_and_uniforms():
    seeds = {completion_seed(seed, prompt, k) for seed in range(8) for prompt in range(20) for k in range(20)}
    assert len(seeds) == 8 * 20 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    uniforms = completion_uniforms(5, 100_000)
    assert uniforms.dtype == torch.float64
    assert float(uniforms.min()) > 0
    assert float(uniforms.max()) <= 1
    assert torch.equal(uniforms, completion_uniforms(5, 100_000))
    assert not torch.equal(uniforms, completion_uniforms(6, 100_000))
