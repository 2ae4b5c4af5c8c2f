"""Chunked log-probabilities against the plain ones: values, gradients, entropy, memory; and the heads they need."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from negaware.models.logprobs import Head, head_of, hidden_states, token_logprobs
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


def plain_logprobs(hidden, head, targets, temperature):
    """The definition, with autograd through all of it."""
    logits = hidden @ head.weight.T if head.bias is None else hidden @ head.weight.T + head.bias
    logits = logits.float() * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logprobs = (logits / temperature).log_softmax(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.9])
@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("chunk_tokens", [1, 4, 23, 100])
def test_values_and_gradients_are_those_of_log_softmax(options, temperature, chunk_tokens):
    head = make_head(**options)
    hidden = torch.randn(23, 11, dtype=torch.float64, requires_grad=True)
    targets, upstream = torch.randint(37, (23,)), torch.randn(23)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]

    logprobs, entropy = token_logprobs(hidden, head, targets, temperature, chunk_tokens)
    expected, expected_entropy = plain_logprobs(hidden, head, targets, temperature)
    assert torch.allclose(logprobs, expected, atol=2e-6)
    assert torch.allclose(entropy, expected_entropy, atol=2e-6)
    assert not entropy.requires_grad

    found = torch.autograd.grad((logprobs * upstream).sum(), leaves)
    for gradient, wanted in zip(found, torch.autograd.grad((expected * upstream).sum(), leaves), strict=True):
        assert gradient.dtype == wanted.dtype
        assert torch.allclose(gradient, wanted, atol=2e-6 * float(wanted.abs().max() + 1))


def test_any_chunk_gives_the_same():
    head, hidden, targets = make_head(torch.float32), torch.randn(50, 11), torch.randint(37, (50,))
    whole, _ = token_logprobs(hidden, head, targets, 1.0, 50)
    for chunk_tokens in (1, 7, 49, 1000):
        assert torch.allclose(token_logprobs(hidden, head, targets, 1.0, chunk_tokens)[0], whole, atol=1e-6)


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
    """A thousand chunks of small bfloat16 gradients: added up in bfloat16 they would stop counting."""
    head = make_head(torch.bfloat16, num_columns=5, width=3)
    hidden = torch.randn(2000, 3).to(torch.bfloat16).abs()
    targets = torch.zeros(2000, dtype=torch.long)
    (found,) = torch.autograd.grad(token_logprobs(hidden, head, targets, 1.0, 2)[0].sum(), head.weight)
    reference = Head(head.weight.detach().double().requires_grad_())
    (exact,) = torch.autograd.grad(token_logprobs(hidden.double(), reference, targets)[0].sum(), reference.weight)
    assert torch.allclose(found.double(), exact, rtol=0.02, atol=0.01 * float(exact.abs().max()))


class LargestTensor(TorchDispatchMode):
    """Watches every result for the largest with a vocabulary-sized dimension, the weight's own shape aside."""

    def __init__(self, vocabulary: int, weight_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.vocabulary, self.weight_shape, self.num_elements = vocabulary, weight_shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            shaped = isinstance(tensor, torch.Tensor) and self.vocabulary in tensor.shape
            if shaped and tuple(tensor.shape) not in (self.weight_shape, self.weight_shape[::-1]):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


@pytest.mark.parametrize("options", [{}, {"scale": 0.5, "softcap": 2.0, "bias": True}])
def test_memory_is_bounded_by_the_chunk(options):
    """The largest tensor of logits, forward and backward, is a chunk's, however many tokens there are."""
    head = make_head(torch.float32, num_columns=101, **options)
    largest = {}
    for num_tokens in (64, 256, 1024):
        hidden = torch.randn(num_tokens, 11, requires_grad=True)
        # Watching is for this thread: run the backward pass's engine on it too.
        with torch.autograd.set_multithreading_enabled(False), LargestTensor(101, (101, 11)) as watched:
            logprobs, _ = token_logprobs(hidden, head, torch.randint(101, (num_tokens,)), 0.7, chunk_tokens=16)
            forward, watched.num_elements = watched.num_elements, 0
            logprobs.sum().backward()
        largest[num_tokens] = (forward, watched.num_elements)
    assert set(largest.values()) == {(16 * 101, 16 * 101)}


def _cohere():
    return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25, tie_word_embeddings=True)).eval()


def _granite():
    return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=5.0)).eval()


@pytest.mark.parametrize("make", [*MODELS.values(), lambda seed: _cohere(), lambda seed: _granite()])
def test_head_and_hidden_states_make_the_models_own_logits(make):
    model, tokens = make(0), torch.randint(1, 61, (2, 9))
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        found = head_of(model).logits(hidden_states(model, tokens).flatten(0, 1), 1.0)
    assert torch.allclose(found, expected.flatten(0, 1), atol=1e-5 * float(expected.abs().max()))


def test_softcap_and_scales_are_found():
    assert head_of(MODELS["gemma2"](0)).softcap == 3.0
    assert head_of(_cohere()).scale == 0.25
    assert head_of(_granite()).scale == 0.2
    assert head_of(llama()).softcap is None


def test_a_model_that_does_something_else_with_its_logits_is_refused():
    model = llama()
    model.register_forward_hook(lambda module, arguments, output: setattr(output, "logits", output.logits**3))
    with pytest.raises(
        ValueError, match="LlamaForCausalLM computes its logits in a way that can't be split into chunk"
    ):
        head_of(model)


def test_the_head_is_the_models_live_weight():
    """The gradient reaches the model's own parameter, and an update of it is seen."""
    model = llama()
    head = head_of(model)
    assert head.weight is model.lm_head.weight
    assert head_of(MODELS["gpt2"](0)).bias is None
