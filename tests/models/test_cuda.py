"""The border to CUDA in training: FlexAttention over shared rows against a dense mask, and what gets compiled when."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.functional import scaled_dot_product_attention

from negaware.models.cuda.compiled import block_mask, compiled_on_cuda, flex_rows
from rounding import exactly

HEADS, KEY_HEADS, WIDTH = 6, 2, 8


@pytest.fixture(autouse=True)
def _flex_attention_as_it_is(monkeypatch):
    """Off CUDA torch warns that it isn't compiled, and refuses gradients, which the plain implementation does have."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)


def segments_of(*rows: tuple[int, ...]) -> torch.Tensor:
    """Rows [R, T] of a question's length and its answers' lengths, padded with −1."""
    segments = [torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) for lengths in rows]
    return torch.nn.utils.rnn.pad_sequence(segments, batch_first=True, padding_value=-1)


def dense_mask(segments: torch.Tensor) -> torch.Tensor:
    """[R, 1, T, T]: a token sees what comes before it in the question and in its own segment."""
    of_queries, of_keys = segments[:, :, None], segments[:, None]
    return ((of_queries == of_keys) | (of_keys == 0)).tril()[:, None]


LAYOUTS = {
    "one answer": segments_of((5, 4)),
    "answers of one token": segments_of((3, 1, 1, 9), (7, 1, 3)),
    "padding": segments_of((5, 4, 8, 3), (1, 2), (20, 7)),
    "whole blocks": segments_of((129, 10, 128)),
}


@pytest.mark.parametrize("segments", LAYOUTS.values(), ids=LAYOUTS)
def test_flex_rows_is_attention_under_the_dense_mask(segments):
    """Values and gradients."""
    num_rows, length = segments.shape
    states = [torch.randn(num_rows, heads, length, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    upstream, mask = torch.randn(num_rows, length, HEADS, WIDTH), dense_mask(segments)

    def with_gradients(attend, dtype):
        leaves = [each.to(dtype).requires_grad_() for each in states]
        attended = attend(*leaves)
        return [attended, *torch.autograd.grad((attended * upstream.to(dtype)).sum(), leaves)]

    def densely(*leaves):
        options = {"attn_mask": mask, "scale": 0.3, "enable_gqa": True}
        return scaled_dot_product_attention(*leaves, **options).transpose(1, 2)

    found = with_gradients(lambda *leaves: flex_rows(*leaves, block_mask(segments), 0.3), torch.float32)
    for result, exact in zip(found, exactly(lambda: with_gradients(densely, torch.float64)), strict=True):
        exact.assert_near(result)


def test_blocks_that_nobody_sees_are_left_out():
    """384 tokens are 3 × 3 blocks of 128: the question's own column, the two answers' diagonals, and no more."""
    segments = torch.tensor([[0] * 128 + [1] * 128 + [2] * 128])
    blocks = block_mask(segments).to_dense()[0, 0]
    assert blocks.tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


IMPORTS_OF_THE_COMPILER = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class OnCuda(torch.Tensor):
    """What says that it is on CUDA, and isn't."""

    is_cuda = True


@pytest.fixture
def graphs():
    """What torch has compiled, as graphs that then run as they are, instead of for a device."""
    found = []

    def keep(graph, inputs):
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend=keep):
        yield found
    torch.compiler.reset()


@IMPORTS_OF_THE_COMPILER
def test_only_tensors_on_cuda_are_compiled(graphs):
    @compiled_on_cuda
    def doubled(numbers, by=2.0):
        """Doc."""
        return numbers * by

    assert doubled(torch.ones(2), by=3.0).tolist() == [3.0, 3.0]
    assert graphs == []
    assert (doubled.__name__, doubled.__doc__) == ("doubled", "Doc.")
    for _ in range(2):
        assert doubled(torch.ones(2).as_subclass(OnCuda)).tolist() == [2.0, 2.0]
    assert len(graphs) == 1, "once, however often it is called"


@IMPORTS_OF_THE_COMPILER
def test_attention_is_compiled_once_for_all_lengths(graphs):
    for length in (4, 6, 9, 13):
        states, mask = torch.randn(1, 1, length, WIDTH), block_mask(torch.zeros(1, length, dtype=torch.long))
        plain = flex_rows(states, states, states, mask, 1.0)
        before = len(graphs)
        compiled = flex_rows(states.as_subclass(OnCuda), states, states, mask, 1.0)
        assert len(graphs) == before + (length == 4)
        torch.testing.assert_close(compiled.as_subclass(torch.Tensor), plain)
