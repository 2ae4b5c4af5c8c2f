"""A model made ready: its decoder by what it is made of and where it runs, its dtype, its masters."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from negaware.models.attention import NAME
from negaware.models.cpu.decoder import FusedDecoder
from negaware.models.cpu.rows import RowDecoder
from negaware.models.cuda.graphs import GraphDecoder
from negaware.models.decoder import CudaDecoder, TransformersDecoder, computation, transformers_decoder_of
from negaware.models.network import make_ready
from negaware.training.pack import Answer, Row, collate
from negaware.types import Completion
from tiny_models import MODELS, network

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "kind", "rows", "shares_questions"),
    [
        ("llama", FusedDecoder, RowDecoder, True),
        ("gpt2", TransformersDecoder, GraphDecoder, False),
        ("mistral", TransformersDecoder, GraphDecoder, False),
    ],
)
def test_a_model_made_ready_has_a_decoder(name, kind, rows, shares_questions):
    ready = network(MODELS[name](0))
    assert type(ready.decoder) is kind
    assert ready.decoder.shares_questions == shares_questions
    assert type(ready.decoder.make_rows()) is rows
    assert (computation(ready.decoder, torch.float32)["kernels"] == "transformers") == (kind is not FusedDecoder)


@pytest.mark.parametrize(
    ("name", "device", "kind", "shares_questions"),
    [
        ("llama", CPU, TransformersDecoder, True),
        ("llama", CUDA, CudaDecoder, True),
        ("gpt2", CPU, TransformersDecoder, False),
        ("mistral", CUDA, CudaDecoder, False),
    ],
)
def test_transformers_decoder_depends_on_the_model_and_its_device(name, device, kind, shares_questions):
    """As for weights in shards, and on CUDA. A device is only where rows will lie: the model itself is on the CPU."""
    model = MODELS[name](0)
    decoder = transformers_decoder_of(model, device)
    assert type(decoder) is kind
    assert decoder.shares_questions == shares_questions
    assert (model.config._attn_implementation == NAME) == shares_questions


def test_a_model_made_ready_computes_in_one_dtype_and_is_trained_in_float32():
    """In float32 master and weight are the same memory; what only samples has no masters; a frozen weight has none."""
    model = MODELS["llama"](0)
    model.lm_head.weight.requires_grad = False
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    ready = network(model, torch.bfloat16)
    assert ready.masters.keys() == before.keys() - {"lm_head.weight"}
    assert all(torch.equal(master, before[name]) for name, master in ready.masters.items())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert ready.head.of(model).weight is model.lm_head.weight

    alike = network(MODELS["llama"](0))
    weights = dict(alike.model.named_parameters())
    assert all(master.data_ptr() == weights[name].data_ptr() for name, master in alike.masters.items())
    assert not make_ready(MODELS["llama"](0), None).masters


def test_rows_of_several_answers_go_to_flex_attention_on_cuda_and_rows_of_one_to_plain_causal_attention():
    model = MODELS["llama"](0)
    answers = [Answer((3, 4), Completion.drawn([5, 6], [-1.0, -1.0], "stop", 0, 0), True, 0.5) for _ in range(2)]
    shared, alone = collate([Row(tuple(answers))]), collate([Row((answer,)) for answer in answers])
    on_cuda, plain = (transformers_decoder_of(model, device) for device in (CUDA, CPU))
    assert isinstance(on_cuda.attention_inputs(shared)["attention_mask"], BlockMask)
    with torch.no_grad():
        found = plain.hidden_states(shared)[shared.source], plain.hidden_states(alone)[alone.source]
        unmasked = model.get_decoder()(alone.tokens, position_ids=alone.positions).last_hidden_state.flatten(0, 1)
    assert torch.equal(found[1], unmasked[alone.source]), "the mask that stands for none changes nothing"
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()
