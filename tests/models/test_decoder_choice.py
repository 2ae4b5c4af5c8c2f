"""Which decoder a model gets: by what it is made of, where it runs, and whether its weights are in shards."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from negaware.models.attention import NAME
from negaware.models.cpu.decoder import FusedDecoder
from negaware.models.decoder import CudaDecoder, TransformersDecoder, computation, decoder_of
from negaware.training.pack import Answer, Row, collate
from negaware.types import Completion
from tiny_models import MODELS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "device", "in_shards", "kind", "shares_questions"),
    [
        ("llama", CPU, False, FusedDecoder, True),
        ("llama", CPU, True, TransformersDecoder, True),
        ("llama", CUDA, True, CudaDecoder, True),
        ("gpt2", CPU, False, TransformersDecoder, False),
        ("mistral", CUDA, False, CudaDecoder, False),
    ],
)
def test_one_place_decides_from_the_model_and_its_device(name, device, in_shards, kind, shares_questions):
    """A device is only where its rows will lie: the model itself is on the CPU here."""
    model = MODELS[name](0)
    decoder = decoder_of(model, device, in_shards)
    assert type(decoder) is kind
    assert decoder.shares_questions == shares_questions
    assert (computation(decoder, torch.float32)["kernels"] == "transformers") == (kind is not FusedDecoder)
    assert (model.config._attn_implementation == NAME) == (shares_questions and kind is not FusedDecoder)


def test_rows_of_several_answers_go_to_flex_attention_on_cuda_and_rows_of_one_to_plain_causal_attention():
    model = MODELS["llama"](0)
    answers = [Answer((3, 4), Completion.drawn([5, 6], [-1.0, -1.0], "stop", 0, 0), True, 0.5) for _ in range(2)]
    shared, alone = collate([Row(tuple(answers))]), collate([Row((answer,)) for answer in answers])
    on_cuda, plain = (decoder_of(model, device, in_shards=True) for device in (CUDA, CPU))
    assert isinstance(on_cuda.attention_inputs(shared)["attention_mask"], BlockMask)
    with torch.no_grad():
        found = plain.hidden_states(shared)[shared.source], plain.hidden_states(alone)[alone.source]
        unmasked = model.get_decoder()(alone.tokens, position_ids=alone.positions).last_hidden_state.flatten(0, 1)
    assert torch.equal(found[1], unmasked[alone.source]), "the mask that stands for none changes nothing"
    assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()
