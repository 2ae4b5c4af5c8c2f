"""Rows and micro-batches: an answer's log-probabilities are the same in any layout, and no answer is lost."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from made_groups import make_group, prompts_and_tokens, sampled_groups

from negaware.models.decoder import TransformersDecoder, attention_mask
from negaware.training.pack import (
    PADDING,
    Answer,
    Row,
    answers_of,
    answers_per_row,
    collate,
    divided,
    micro_batches,
    rows_of,
)
from negaware.training.step import answers_in, importance_weights
from negaware.types import Completion
from rounding import exact_logprobs
from tiny_models import MODELS


def test_a_group_with_a_verdict_too_few_is_none() -> None:
    done = Completion.drawn((5,), (-1.0,), "stop", 0, 0)
    with pytest.raises(ValueError, match="zip"):
        answers_of(make_group([1], [done, done], [True]))


def made_up(prompt_length: int, lengths: list[int]) -> list[Answer]:
    return [
        Answer(tuple(range(prompt_length)), Completion.drawn(range(n), [-1.0] * n, "stop", 0, 0), True, 0.5)
        for n in lengths
    ]


def logprobs_by_answer(trainer, batches: list[list[Row]]) -> dict[int, torch.Tensor]:
    found = {}
    with torch.no_grad():
        for rows in batches:
            batch = collate(rows)
            flat, _ = trainer.logprobs(batch)
            parts = flat.split([answer.num_tokens for answer in batch.answers])
            found |= {id(answer): part for answer, part in zip(batch.answers, parts, strict=True)}
    return found


@pytest.mark.parametrize("name", MODELS)
def test_an_answers_logprobs_are_the_same_in_any_layout(name, make_trainer):
    model = MODELS[name](0)
    trainer = make_trainer(model, micro_batch_tokens=200)
    groups = sampled_groups(model)
    questions = [answers_of(group) for group in groups]
    layouts = {
        "alone": [[Row((answer,))] for answers in questions for answer in answers],
        "the trainer's own": [packed.rows for packed in trainer.pack(questions)[0]],
        "padded": micro_batches([row for answers in questions for row in rows_of(answers, 1)], 500),
    }
    if trainer.decoder.shares_questions:
        for shared in (2, 3, 6):
            rows = [row for answers in questions for row in rows_of(answers, shared)]
            layouts[f"{shared} a row"] = micro_batches(rows, 300)
        mixed = [row for n, answers in enumerate(questions) for row in rows_of(answers, 1 + n)]
        layouts["mixed"] = micro_batches(mixed, 10_000)
    exact = exact_logprobs(model, prompts_and_tokens(groups))
    for batches in layouts.values():
        found = logprobs_by_answer(trainer, batches)
        assert len(found) == 30
        exact.assert_near(torch.cat([found[id(answer)] for answers in questions for answer in answers]))


def test_questions_are_shared_where_positions_and_masks_allow_it(make_trainer):
    divided = {name: make_trainer(make(0)).decoder.shares_questions for name, make in MODELS.items()}
    assert divided == {
        "llama": True,
        "qwen3": True,
        "gpt2": False,  # its positions are learned, but nothing needs them to be free: it is simply left out
        "mistral": False,  # a sliding window counts columns, not positions
        "gemma2": False,
        "gemma3": False,
    }


def test_eager_attention_does_not_share_questions(make_trainer):
    """It adds its mask to the scores; a boolean one would only nudge them."""
    model = MODELS["llama"](0)
    model.set_attn_implementation("eager")
    trainer = make_trainer(model)
    assert not trainer.decoder.shares_questions
    groups = sampled_groups(model, 2)
    questions = [answers_of(group) for group in groups]
    found = logprobs_by_answer(trainer, [packed.rows for packed in trainer.pack(questions)[0]])
    exact = exact_logprobs(model, prompts_and_tokens(groups))
    exact.assert_near(torch.cat([found[id(answer)] for answers in questions for answer in answers]))


def test_a_row_holds_its_question_once_and_masks_answers_from_each_other():
    short, long = made_up(3, [2, 4])
    batch = collate([Row((short, long))])
    # question 0 1 2, first answer's token 0, second answer's tokens 0 1 2
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 0, 1, 2]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 3, 4, 5]]
    assert batch.source.tolist() == [2, 3, 2, 4, 5, 6]
    assert batch.targets.tolist() == [0, 1, 0, 1, 2, 3]
    mask = attention_mask(batch.segments)[0, 0].int().tolist()
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0],
        [1, 1, 1, 0, 1, 1, 0],
        [1, 1, 1, 0, 1, 1, 1],
    ]
    assert batch.pad(torch.arange(6.0)).tolist() == [[0, 1, 0, 0], [2, 3, 4, 5]]
    alone = collate([Row((long,)), Row((short,))])
    assert TransformersDecoder(MODELS["llama"](0), False).attention_inputs(alone) == {}


def test_rows_of_several_lengths_in_one_micro_batch():
    """Padding counts on from where its row ends, but never past the last position of a real token."""
    first, second, lone = *made_up(3, [2, 4]), *made_up(2, [3])
    batch = collate([Row((first, second)), Row((lone,))])
    assert [row.length for row in batch.rows] == [7, 4]
    assert [row.last_position for row in batch.rows] == [5, 3]
    assert batch.tokens.tolist() == [[0, 1, 2, 0, 0, 1, 2], [0, 1, 0, 1, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 3, 4, 5], [0, 1, 2, 3, 4, 5, 5]]
    assert batch.segments.tolist() == [[0, 0, 0, 1, 2, 2, 2], [0, 0, 1, 1, PADDING, PADDING, PADDING]]
    assert batch.source.tolist() == [2, 3, 2, 4, 5, 6, 7 + 1, 7 + 2, 7 + 3]
    assert batch.targets.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert batch.answer_index.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert batch.answer_position.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2]
    padded = batch.pad(torch.arange(1.0, 10.0))
    assert padded.tolist() == [[1, 2, 0, 0], [3, 4, 5, 6], [7, 8, 9, 0]]
    mask = attention_mask(batch.segments)
    assert mask.shape == (2, 1, 7, 7)
    assert mask[1, 0, :4].int().tolist() == [[1, *[0] * 6], [1, 1, *[0] * 5], [1, 1, 1, *[0] * 4], [1] * 4 + [0] * 3]
    decoder = TransformersDecoder(MODELS["llama"](0), True)
    assert decoder.attention_inputs(batch).keys() == {"attention_mask", "shared_rows"}


def test_every_answer_has_a_verdict():
    group = sampled_groups(MODELS["llama"](0), num_groups=1, num_answers=3)[0]
    assert [answer.correct for answer in answers_of(group)] == [verdict.correct for verdict in group.verdicts]
    with pytest.raises(ValueError, match="zip"):
        answers_of(replace(group, verdicts=group.verdicts[:2]))


def test_a_micro_batch_lies_on_the_device_that_it_is_made_for():
    answers = [replace(answer, centred_reward=0.5, reward_std=1.0) for answer in made_up(3, [2, 4])]
    batch = collate([Row(tuple(answers))], "meta")
    parts = (batch.tokens, batch.positions, batch.segments, batch.source, batch.targets)
    logprobs = torch.zeros(6, device="meta")
    answers = answers_in(batch, logprobs)
    made = (
        *(getattr(answers, name) for name in answers.__slots__ if name != "whole"),  # made by the first pass alone
        importance_weights(batch, batch.pad(logprobs), 2.0),
    )
    places = (batch.answer_index, batch.answer_position, attention_mask(batch.segments))
    assert {tensor.device.type for tensor in (*parts, *places, *made)} == {"meta"}


def test_one_token_answers_need_no_tokens_of_their_own():
    batch = collate([Row(tuple(made_up(3, [1, 1, 1])))])
    assert batch.tokens.tolist() == [[0, 1, 2]]
    assert batch.source.tolist() == [2, 2, 2]


def test_how_many_answers_share_a_row():
    answers = made_up(50, [12] * 8)
    # 50 + 11 n tokens for n answers; rows are alike, so 5 of 8 that would fit become 4 and 4
    for max_tokens, shared in ((40, 1), (60, 1), (72, 2), (94, 4), (105, 4), (137, 4), (138, 8)):
        assert answers_per_row(answers, max_tokens) == shared
    assert answers_per_row(made_up(50, [12]), 4096) == 1
    uneven = made_up(10, [100, 3, 3, 3])  # the longest answers of a question lie in one row
    assert answers_per_row(uneven, 111) == 2


@pytest.mark.parametrize("seed", range(5))
def test_micro_batches_keep_to_the_budget_and_lose_nothing(seed):
    choose = random.Random(seed)
    rows = [
        row
        for _ in range(30)
        for row in rows_of(
            made_up(choose.randint(1, 40), [choose.randint(1, 60) for _ in range(8)]), choose.randint(1, 8)
        )
    ]
    batches = micro_batches(rows, 256)
    for batch in batches:
        assert len(batch) * max(row.length for row in batch) <= 256 or len(batch) == 1
    assert Counter(id(row) for batch in batches for row in batch) == Counter(map(id, rows))
    assert Counter(id(a) for batch in batches for a in collate(batch).answers) == Counter(
        id(a) for row in rows for a in row.answers
    )


def test_micro_batches_are_filled_with_the_longest_first():
    rows = [Row((answer,)) for answer in made_up(1, [20, 60, 100, 20, 60, 20, 7, 20, 20])]  # as many tokens as here
    filled = micro_batches(rows, 120)
    assert [[row.length for row in batch] for batch in filled] == [[100], [60, 60], [20] * 5 + [7]]
    assert [[row.length for row in batch] for batch in micro_batches(rows, 119)] == [[100], [60], [60], [20] * 5, [7]]
    assert [[row.length for row in batch] for batch in micro_batches(rows[:5], 10)] == [[100], [60], [60], [20], [20]]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_rows_are_dealt_out_by_tokens(num_ranks):
    """Each row once; no two parts are further apart than the longest row, where dealing in turn is."""
    choose = random.Random(0)
    rows = [Row((answer,)) for answer in made_up(5, [choose.choice([10, 20, 900]) for _ in range(30)])]
    dealt = divided(rows, num_ranks)
    assert Counter(map(id, rows)) == Counter(id(row) for share in dealt for row in share)
    tokens = [sum(row.length for row in share) for share in dealt]
    assert max(tokens) - min(tokens) <= max(row.length for row in rows)
    dealt = divided([Row((answer,)) for answer in made_up(1, [900, 500, 400, 100, 100])], 2)
    assert [[row.length for row in share] for share in dealt] == [[900, 100], [500, 400, 100]]
