"""Log-probabilities part by part against the plain ones: values, gradients, entropy, memory; and heads."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from negaware.models import logprobs as logprobs_module
from negaware.models.logprobs import Head, head_of, hidden_states, token_logprobs
from rounding import assert_within, exactly, gamma
from tiny_models import MODELS, SHAPE, llama

HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 1.5},
    "all": {"bias": True, "scale": 0.7, "softcap": 2.0},
}


def make_head(dtype=torch.float64, num_columns=37, width=11, *, bias=False, **options) -> Head:
    weight = torch.randn(num_columns, width).to(dtype).requires_grad_()
    return Head(weight, torch.randn(num_columns).to(dtype).requires_grad_() if bias else None, **options)


def plain_distributions(hidden, head, temperature):
    logits = hidden @ head.weight.T if head.bias is None else hidden @ head.weight.T + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return (logits / temperature).log_softmax(-1)


def plain_logprobs(hidden, head, targets, temperature):
    """The definition, with autograd through all of it."""
    logprobs = plain_distributions(hidden, head, temperature)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.9])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("columns", [1, 4, 36, 100])
def test_values_and_gradients_are_those_of_log_softmax(options, temperature, columns, monkeypatch):
    """Against float64, bounded by what float32 logits and normalisers allow: see rounding.py."""
    monkeypatch.setattr(logprobs_module, "LEAST_COLUMNS", columns)
    head = make_head(**options)
    hidden = torch.randn(23, 11, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(37, (23,)), torch.randn(23)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]

    logprobs, entropy = token_logprobs(hidden, head, targets, temperature)
    expected, expected_entropy = plain_logprobs(hidden, head, targets, temperature)
    # A logit is rounded up to 4 times (float32, scale, cap, temperature), each part's normaliser and the sum so far
    # twice, all at the size of the largest; a part's weight errs by as much, and its sums by 37 operations.
    largest = float((hidden @ head.weight.T).detach().abs().max()) + (
        0 if head.bias is None else float(head.bias.detach().abs().max())
    )
    largest = largest * head.scale / temperature + math.log(37)
    error = gamma(4 + 4 * -(-37 // columns)) * largest
    assert_within(logprobs, expected, error)
    assert_within(entropy, expected_entropy, error + largest * (error + gamma(37)))
    assert not entropy.requires_grad

    found = torch.autograd.grad((logprobs * upstream).sum(), leaves)
    wanted = torch.autograd.grad((expected * upstream).sum(), leaves)
    # Every probability errs by e^error and an exponential; what it is multiplied with is exact.
    probabilities = plain_distributions(hidden, head, temperature).exp().detach()
    probabilities[torch.arange(23), targets] += 1
    of_logits = probabilities * upstream.double().abs()[:, None] * (head.scale / temperature)
    sizes = [of_logits @ head.weight.abs(), of_logits.T @ hidden.abs(), of_logits.sum(0)]
    for gradient, exact, size in zip(found, wanted, sizes, strict=False):
        assert gradient.dtype == exact.dtype
        assert_within(gradient, exact, (error + 1e-6 + gamma(37)) * size)


def test_any_part_of_the_vocabulary_gives_the_same(monkeypatch):
    head, hidden, targets = make_head(torch.float32), torch.randn(50, 11), torch.randint(37, (50,))
    double = replace(head, weight=head.weight.detach().double())
    (whole,) = exactly(lambda: [plain_logprobs(hidden.double(), double, targets, 1.0)[0]])
    for columns in (1, 7, 36, 1000):
        monkeypatch.setattr(logprobs_module, "LEAST_COLUMNS", columns)
        # Of one column a part the sum is taken up again 37 times, each time rounded at the size of what it is.
        whole.assert_near(token_logprobs(hidden, head, targets)[0], times=math.sqrt(-(-37 // columns)))


def bfloat16_errors(hidden, head, targets):
    """How far logits [N, V] in bfloat16 may be off, in nats: their distance from the target's is what is rounded.

    The target's is rounded beforehand, and all are sums of `width` products in float32. float32 logits err by less.
    """
    products, unit = hidden @ head.weight.T, torch.finfo(torch.bfloat16).eps / 2
    of_target = products.gather(1, targets[:, None])
    sums = gamma(hidden.shape[1] + 1) * (hidden.abs() @ head.weight.abs().T) + gamma(8) * products.abs().amax()
    return head.scale * (unit * ((products - of_target).abs() + unit * of_target.abs() + 2 * sums) + 2 * sums)


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "bias": True}, {"softcap": 30.0}])
def test_in_bfloat16_logits_near_the_targets_are_not_rounded(options):
    """Logits around 100: bfloat16 would be off by up to a quarter of a nat."""
    head = make_head(torch.bfloat16, num_columns=200, width=64, **options)
    head = replace(head, weight=head.weight.detach() + 1)
    hidden = (torch.randn(300, 64) / 8 + 1.5).to(torch.bfloat16)
    targets, double = head.logits(hidden, 1.0).argmax(-1), replace(head, weight=head.weight.double())
    expected, expected_entropy = plain_logprobs(hidden.double(), double, targets, 1.0)
    found, entropy = token_logprobs(hidden, head, targets)
    assert expected_entropy.mean() > 0.1  # not a question with one answer
    of_logits = bfloat16_errors(hidden.double(), double, targets)
    logprobs = plain_distributions(hidden.double(), double, 1.0)
    # With logits off by e, Σ p exp(e) is at most how much the normaliser changes by; 200 terms of it are added up.
    of_normaliser = (logprobs + of_logits).logsumexp(-1) + gamma(200)
    assert_within(found, expected, of_logits.gather(1, targets[:, None])[:, 0] + of_normaliser)
    changes = of_logits + of_normaliser[:, None]  # of log p; H is −Σ p log p
    assert_within(
        entropy, expected_entropy, (logprobs.exp() * (changes.expm1() * -logprobs + changes.exp() * changes)).sum(-1)
    )


def test_a_target_of_probability_zero_and_a_certain_one():
    """Entropy and gradients stay finite where probabilities under- or overflow."""
    head = Head(torch.tensor([[200.0], [0.0], [-200.0]]).requires_grad_())
    hidden = torch.ones(2, 1, requires_grad=True)
    logprobs, entropy = token_logprobs(hidden, head, torch.tensor([2, 0]))
    assert logprobs.tolist() == [-400.0, 0.0]
    assert entropy.tolist() == [0.0, 0.0]
    logprobs.sum().backward()
    assert hidden.grad.tolist() == [[-400.0], [0.0]]  # d/dh (−200 h − log Z) and 0


def test_the_head_gradient_is_added_up_in_float32():
    """Thousands of tokens' small gradients: added up in bfloat16 they would stop counting."""
    head = make_head(torch.bfloat16, num_columns=5, width=3)
    hidden = torch.randn(2000, 3).to(torch.bfloat16).abs()
    targets = torch.zeros(2000, dtype=torch.long)
    (found,) = torch.autograd.grad(token_logprobs(hidden, head, targets)[0].sum(), head.weight)
    hidden, reference = hidden.double(), Head(head.weight.detach().double())
    probabilities = plain_distributions(hidden, reference, 1.0).exp()
    of_logits = torch.eye(5, dtype=torch.float64)[targets] - probabilities
    changes = bfloat16_errors(hidden, reference, targets)
    changes += (probabilities * changes.exp()).sum(-1, keepdim=True).log() + gamma(5 + 1)
    errors = probabilities * changes.expm1()
    errors += torch.finfo(torch.bfloat16).eps / 2 * (of_logits.abs() + errors)  # they are rounded once more
    allowed = (errors.T + gamma(2000) * of_logits.abs().T) @ hidden.abs()
    assert_within(found, of_logits.T @ hidden, allowed)


class LargestTensor(TorchDispatchMode):
    """Watches every result for the largest with a dimension of tokens; the states' own shape aside."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.num_tokens, self.width, self.num_elements = num_tokens, width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            shaped = isinstance(tensor, torch.Tensor) and self.num_tokens in tensor.shape
            if shaped and self.width not in tensor.shape:
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "softcap": 2.0, "bias": True}])
def test_memory_depends_neither_on_tokens_nor_on_the_vocabulary(options, monkeypatch):
    """The largest tensor of logits, forward and backward, is a part's."""
    monkeypatch.setattr(logprobs_module, "LOGITS_AT_ONCE", {"cpu": 16 * 1024, "cuda": 1})
    for num_tokens, vocabulary in ((64, 2048), (256, 2048), (1024, 2048), (256, 8192)):
        head = make_head(torch.float32, num_columns=vocabulary, **options)
        hidden = torch.randn(num_tokens, 11, requires_grad=True)
        # Watching is for this thread: run the backward pass's engine on it too.
        with torch.autograd.set_multithreading_enabled(False), LargestTensor(num_tokens, 11) as watched:
            logprobs, _ = token_logprobs(hidden, head, torch.randint(vocabulary, (num_tokens,)), 0.7)
            forward, watched.num_elements = watched.num_elements, 0
            logprobs.sum().backward()
        assert (forward, watched.num_elements) == (16 * 1024, 16 * 1024)


def _cohere():
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25, tie_word_embeddings=True)).eval()


def _granite():
    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=5.0)).eval()


@pytest.mark.parametrize("make", [*MODELS.values(), lambda seed: _cohere(), lambda seed: _granite()])
def test_head_and_hidden_states_make_the_models_own_logits(make):
    model, tokens = make(0), torch.randint(1, 61, (2, 9))
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        (exact,) = exactly(lambda: [double(tokens, use_cache=False).logits.flatten(0, 1)])
        exact.assert_near(head_of(model).logits(hidden_states(model, tokens).flatten(0, 1), 1.0))


def test_softcap_and_scales_are_found():
    assert head_of(MODELS["gemma2"](0)).softcap == 3.0
    assert head_of(_cohere()).scale == 0.25
    assert head_of(_granite()).scale == 0.2
    assert head_of(llama()).softcap is None


def test_a_model_that_does_something_else_with_its_logits_is_refused():
    model = llama()
    model.register_forward_hook(lambda module, arguments, output: setattr(output, "logits", output.logits**3))
    with pytest.raises(ValueError, match="LlamaForCausalLM computes its logits in a way that can't be split into part"):
        head_of(model)


def test_the_head_is_the_models_live_weight():
    """The gradient reaches the model's own parameter, and an update of it is seen."""
    model = llama()
    head = head_of(model)
    assert head.weight is model.lm_head.weight
    assert head_of(MODELS["gpt2"](0)).bias is None
