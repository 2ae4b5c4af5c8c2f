"""What every engine must do, on small random models of several architectures, float32.

An engine passes by subclassing `EngineConformance` and saying how it is made from a transformers model.
"""

import copy
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest
import torch
from transformers import PreTrainedModel

from negaware.objectives import OBJECTIVES
from negaware.rollout.engine import Draft, Engine, Request, SamplingParams
from negaware.training.options import TrainingOptions
from negaware.training.pack import Answer, collate
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion
from rounding import exact_logprobs, exactly
from tiny_models import MODELS, VOCABULARY, each_model, llama, network

MAX_SEQUENCES = 6


def random_prompts(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    """Prompts of these lengths, without token 0, which greedy `generate` pads with."""
    generator = random.Random(seed)
    return [[generator.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths]


def trainer_logprobs(
    model: PreTrainedModel, prompt: list[int], completions: tuple[Completion, ...], temperature: float
) -> list[list[float]]:
    """The trainer's log-probabilities of a question's completions, in one micro-batch as it would lay them out."""
    loss = LossSettings(OBJECTIVES["nft"], {}, temperature, 1)
    trainer = Trainer(network(copy.deepcopy(model)), loss, TrainingOptions(compute_dtype="float32"), num_steps=1)
    answers = [Answer(tuple(prompt), done, True, 0.5) for done in completions]
    found = {}
    for micro_batch in trainer.pack([answers])[0]:
        batch = collate(micro_batch.rows, model.device)
        flat = trainer.logprobs(batch)[0].tolist()
        for answer in batch.answers:
            found[id(answer)], flat = flat[: answer.num_tokens], flat[answer.num_tokens :]
    return [found[id(answer)] for answer in answers]


def assert_logprobs_are_the_models(
    model: PreTrainedModel, prompts: list[list[int]], groups: list[tuple[Completion, ...]], temperature: float = 1.0
) -> None:
    """What the engine recorded, and what the trainer computes, are the model's in float64 but for rounding."""
    answers = [(prompt, done.token_ids) for prompt, group in zip(prompts, groups, strict=True) for done in group]
    exact = exact_logprobs(model, answers, temperature)
    exact.assert_near([logprob for group in groups for done in group for logprob in done.logprobs])
    of_trainer = [trainer_logprobs(model, *each, temperature) for each in zip(prompts, groups, strict=True)]
    exact.assert_near([logprob for of_group in of_trainer for done in of_group for logprob in done])


def renormalised(probabilities: list[float], top_k: int, top_p: float) -> dict[int, float]:
    """The k likeliest tokens, of those the fewest that reach top_p of their mass, as a distribution."""
    likeliest = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])[: top_k or None]
    mass = sum(probabilities[token] for token in likeliest)
    kept: list[int] = []
    while sum(probabilities[token] for token in kept) < top_p * mass and len(kept) < len(likeliest):
        kept.append(likeliest[len(kept)])
    return {token: probabilities[token] / sum(probabilities[other] for other in kept) for token in kept}


@pytest.fixture(params=each_model(), scope="module")
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each architecture in turn."""
    return MODELS[request.param](1)


class EngineConformance:
    """The suite. Subclasses are collected by pytest."""

    LONG = 20
    """Tokens of an answer that is still under way after five steps; where sampling goes on by itself, after seconds."""

    def make_engine(self, model: PreTrainedModel, max_sequences: int = MAX_SEQUENCES) -> Engine:
        """The engine under test."""
        raise NotImplementedError

    def test_greedy_is_generate(self, model):
        prompts = random_prompts(0, (3, 1, 9, 17))
        stop = (5, 6, 7)
        params = SamplingParams(max_new_tokens=24, temperature=0.0, stop_token_ids=stop)
        for prompt, (completion,) in zip(prompts, self.make_engine(model).generate(prompts, 1, params, 0), strict=True):
            expected = model.generate(
                torch.tensor([prompt], device=model.device),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=list(stop),
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            assert list(completion.token_ids) == expected
            assert completion.finish_reason == ("stop" if expected[-1] in stop else "length")

    @pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
    def test_logprobs_are_the_trainers(self, model, temperature):
        prompts = random_prompts(1, (5, 13, 2))
        params = SamplingParams(max_new_tokens=20, temperature=temperature, stop_token_ids=(3, 4))
        groups = self.make_engine(model).generate(prompts, 3, params, seed=2)
        assert_logprobs_are_the_models(model, prompts, groups, temperature)

    @pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.6), (4, 1.0), (9, 0.7)])
    def test_restricted_logprobs_are_renormalised(self, top_k, top_p):
        model = llama(1)
        params = SamplingParams(12, temperature=1.3, top_p=top_p, top_k=top_k)
        prompts = random_prompts(2, (4, 7))
        groups = self.make_engine(model).generate(prompts, 3, params, seed=0)
        double = copy.deepcopy(model).cpu().double()
        for prompt, group in zip(prompts, groups, strict=True):
            tokens = torch.tensor([[*prompt, *completion.token_ids] for completion in group])
            (exact,) = exactly(lambda tokens=tokens: [double(tokens).logits / 1.3])
            for completion, logits in zip(group, exact.value[:, len(prompt) - 1 : -1], strict=True):
                for row, token, logprob in zip(logits, completion.token_ids, completion.logprobs, strict=True):
                    kept = renormalised(row.softmax(-1).tolist(), top_k, top_p)
                    # The token's logit errs, and so does that of every other that is kept.
                    assert logprob == pytest.approx(math.log(kept[token]), rel=0, abs=2 * exact.error)

    def test_first_tokens_differ_and_follow_the_softmax(self):
        model, (prompt,), num_completions = llama(2, initializer_range=0.17), random_prompts(3, (6,)), 1500
        params = SamplingParams(max_new_tokens=1, temperature=2.0)
        (group,) = self.make_engine(model, num_completions).generate([prompt], num_completions, params, seed=0)
        counts = Counter(completion.token_ids[0] for completion in group)
        logits = model(torch.tensor([prompt], device=model.device)).logits[0, -1].detach().cpu()
        expected = (logits / 2.0).softmax(-1) * num_completions
        frequent = expected >= 5
        observed = torch.tensor([float(counts[token]) for token in range(VOCABULARY)])
        chi_square = ((observed - expected) ** 2 / expected)[frequent].sum()
        assert frequent.sum() > 30
        assert chi_square < frequent.sum() + 4 * (2 * frequent.sum()) ** 0.5

    def test_few_answers_differ_in_their_first_token(self):
        params = SamplingParams(max_new_tokens=1, temperature=2.0)
        model = llama(2, initializer_range=0.1)
        groups = self.make_engine(model, 64).generate(random_prompts(4, (6, 6, 6, 6)), 8, params, seed=0)
        assert all(len({completion.token_ids[0] for completion in group}) >= 4 for group in groups)
        assert len({str([completion.token_ids.tolist() for completion in group]) for group in groups}) == 4

    def test_a_seed_gives_the_same_tokens_and_another_does_not(self, model):
        prompts = random_prompts(5, (4, 8, 2))
        params = SamplingParams(max_new_tokens=12)
        first, again, other = (self.make_engine(model).generate(prompts, 2, params, seed) for seed in (7, 7, 8))
        assert first == again
        assert [c.token_ids.tolist() for g in first for c in g] != [c.token_ids.tolist() for g in other for c in g]
        assert len({completion.seed for group in first for completion in group}) == 6

    @pytest.mark.parametrize("max_sequences", [2, 3, 64])
    def test_what_else_is_decoded_does_not_matter(self, max_sequences):
        """A completion depends on its prompt, its place among them and the seed, not on what shares its batch."""
        model, params = llama(3), SamplingParams(max_new_tokens=25, stop_token_ids=(1, 2, 3))
        prompts = random_prompts(6, (4, 20, 2, 9, 11))
        everything = self.make_engine(model, 5).generate(prompts, 2, params, seed=1)
        assert _tokens(self.make_engine(model, max_sequences).generate(prompts, 2, params, seed=1)) == _tokens(
            everything
        )
        assert _tokens(self.make_engine(model).generate(prompts[:1], 2, params, seed=1)) == _tokens(everything[:1])
        other_neighbours = [prompts[0], *random_prompts(7, (30, 1))]
        assert (
            _tokens(self.make_engine(model).generate(other_neighbours, 2, params, seed=1))[0] == _tokens(everything)[0]
        )

    def test_shares_of_a_call_are_the_call(self):
        model, params = llama(6), SamplingParams(max_new_tokens=9)
        prompts = random_prompts(12, (3, 8, 5))
        whole = self.make_engine(model).generate(prompts, 2, params, seed=4)
        for share in ([0, 2], [1]):
            requests = [asked(prompts, whole, params)[i] for i in share]
            found = {done.seed: done for step in self.make_engine(model).run(requests) for done in step}
            assert found.keys() == {done.seed for i in share for done in whole[i]}
            assert _tokens([tuple(found[done.seed] for done in whole[i]) for i in share]) == _tokens(
                [whole[i] for i in share]
            )

    @pytest.mark.parametrize("lengths", [(2,) * 14, (40, 1, 1, 1, 25, 1, 60), (1, 1, 1, 1, 1, 1, 120)])
    def test_stop_and_length(self, model, lengths):
        prompts, stop, limit = random_prompts(8, lengths), (9, 10, 11, 12), 30
        params = SamplingParams(limit, temperature=2.0, stop_token_ids=stop)
        groups = self.make_engine(model).generate(prompts, 3, params, seed=0)
        assert [len(group) for group in groups] == [3] * len(prompts)
        reasons = Counter()
        for completion in (completion for group in groups for completion in group):
            *before, last = completion.token_ids
            assert len(completion.logprobs) == completion.num_tokens <= limit
            assert not set(before) & set(stop)
            assert completion.finish_reason == ("stop" if last in stop else "length")
            assert last in stop or completion.num_tokens == limit
            reasons[completion.finish_reason] += 1
        assert len(reasons) == 2, "this scenario should show both ends"

    @pytest.mark.parametrize("lengths", [(5, 28, 12, 31, 2), (31, 31), (2, 7, 3)])
    def test_an_answer_has_the_room_that_its_prompt_leaves(self, lengths):
        """It is the answer that it would be with more room, up to there."""
        model, prompts, stop = llama(5), random_prompts(14, lengths), (1, 2, 3)
        whole = self.make_engine(model).generate(prompts, 3, SamplingParams(20, stop_token_ids=stop), seed=3)
        params = SamplingParams(20, stop_token_ids=stop, max_tokens=32)
        found = self.make_engine(model).generate(prompts, 3, params, seed=3)
        for prompt, group, longer in zip(prompts, found, whole, strict=True):
            room = min(20, 32 - len(prompt))
            assert [done.token_ids.tolist() for done in group] == [done.token_ids[:room].tolist() for done in longer]
            for done in group:
                assert len(done.logprobs) == done.num_tokens <= room
                assert done.finish_reason == ("stop" if done.token_ids[-1] in stop else "length")

    def test_one_token_is_a_whole_answer(self, model):
        groups = self.make_engine(model).generate(random_prompts(9, (3, 5, 4, 2, 8)), 2, SamplingParams(1), seed=0)
        assert all(completion.num_tokens == 1 for group in groups for completion in group)

    def test_swapped_weights_are_the_ones_sampled_from(self, model):
        other, own = perturbed(model), copy.deepcopy(model.state_dict())
        prompts, params = random_prompts(10, (5, 3)), SamplingParams(10, temperature=0.0)
        engine = self.make_engine(model)
        before = engine.generate(prompts, 1, params, seed=0)
        expected = self.make_engine(other).generate(prompts, 1, params, seed=0)
        engine.load_weights(((name, weight.clone()) for name, weight in other.named_parameters()), version=9)
        after = engine.generate(prompts, 1, params, seed=0)
        assert _tokens(after) == _tokens(expected) != _tokens(before)
        assert {span.version for group in before for completion in group for span in completion.spans} == {0}
        assert {span.version for group in after for completion in group for span in completion.spans} == {9}
        model.load_state_dict(own)  # the local engine's weights are the model's own

    def test_no_prompt_gives_no_completion(self):
        assert self.make_engine(llama(0)).generate([], 4, SamplingParams(3), seed=0) == []

    def test_progress_counts_every_token(self):
        told: list[int] = []
        params = SamplingParams(15, stop_token_ids=(1, 2, 3, 4))
        prompts = random_prompts(11, (3, 9, 1, 4, 4))
        groups = self.make_engine(llama(0)).generate(prompts, 2, params, 0, told.append)
        assert sum(told) == sum(completion.num_tokens for group in groups for completion in group)
        assert len(told) > 1

    def test_an_interrupted_call_leaves_nothing_behind(self):
        def interrupt(num_tokens: int) -> None:
            raise KeyboardInterrupt

        model, params, prompts = llama(7), SamplingParams(12), random_prompts(13, (4, 40, 6, 3))
        engine = self.make_engine(model)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(prompts, 2, params, 0, interrupt)
        told: list[int] = []
        groups = engine.generate(prompts, 2, params, 1, told.append)
        assert sum(told) == sum(completion.num_tokens for group in groups for completion in group)
        assert _tokens(groups) == _tokens(self.make_engine(model).generate(prompts, 2, params, 1))

    def test_a_request_submitted_while_others_run(self, model):
        """Its prompt is longer than theirs, there are more rows than before, and the answers are the same."""
        params, lengths = SamplingParams(self.LONG, temperature=2.0, stop_token_ids=(9, 10)), (4, 6, 33, 2)
        prompts = random_prompts(15, lengths)
        expected = self.make_engine(model).generate(prompts, 2, params, seed=6)
        requests, engine = asked(prompts, expected, params), self.make_engine(model)
        for request in requests:
            engine.submit(request)
            for _ in range(3):
                engine.step()
        finish(engine, requests)
        assert engine.step() == 0
        assert _by_seed(done for request in requests for done in request.take()) == _by_seed(
            done for group in expected for done in group
        )
        assert not any(request.finished for request in requests)

    def test_a_request_of_other_parameters_is_sampled_by_them(self):
        model, (prompt,) = llama(1), random_prompts(16, (5,))
        both = SamplingParams(8, temperature=0.0), SamplingParams(3)
        expected = [self.make_engine(model).generate([prompt], 1, params, 0) for params in both]
        requests = [asked([prompt], groups, params)[0] for groups, params in zip(expected, both, strict=True)]
        engine = self.make_engine(model)
        for request in requests:
            engine.submit(request)
            engine.step()
        finish(engine, requests)
        assert _tokens([tuple(request.take()) for request in requests]) == _tokens([group for (group,) in expected])

    def test_what_is_withdrawn_goes_on_when_it_is_submitted_again(self, model):
        params, prompts = SamplingParams(self.LONG), random_prompts(17, (4, 9, 2))
        expected = self.make_engine(model).generate(prompts, 2, params, seed=3)
        requests, engine = asked(prompts, expected, params), self.make_engine(model)
        for request in requests:
            engine.submit(request)
        for _ in range(1 if engine.samples_alone else 5):
            engine.step()
        first, *others = requests
        num_left = len(first.drafts)
        assert engine.withdraw([first]) == ([first] if num_left else [])
        assert engine.withdraw([first]) == []
        finish(engine, others)
        assert len(first.drafts) == num_left  # nothing more was drawn of it
        begun = {draft.seed: list(draft.token_ids) for draft in first.drafts}
        assert engine.samples_alone or all(begun.values())
        for draft in first.drafts:
            assert len(draft.token_ids) == len(draft.logprobs) == sum(span.num_tokens for span in draft.spans)
        engine.submit(first)
        finish(engine, [first])
        assert engine.withdraw() == []
        found = _by_seed(done for request in others for done in request.finished)
        assert found == _by_seed(done for group in expected[1:] for done in group)
        for done in first.finished:
            before = begun.get(done.seed, [])
            assert done.token_ids.tolist()[: len(before)] == before
            assert (done.num_tokens, done.versions.tolist()) == (self.LONG, [0] * self.LONG)
        assert_logprobs_are_the_models(model, prompts, [tuple(request.take()) for request in requests])

    def test_weights_change_while_requests_run(self, model):
        """Each token's version and log-probability are those of the weights that drew it."""
        before, other, own = copy.deepcopy(model), perturbed(model), copy.deepcopy(model.state_dict())
        params = SamplingParams(self.LONG), SamplingParams(3)
        prompts = random_prompts(18, (5, 12, 3))
        engine = self.make_engine(model)
        requests = [
            Request(prompt, params[number == 0 and engine.samples_alone], [Draft(2 * number), Draft(2 * number + 1)])
            for number, prompt in enumerate(prompts)
        ]
        for request in requests:
            engine.submit(request)
        for _ in range(1 if engine.samples_alone else 5):  # what samples alone is waited for until an answer ends
            engine.step()
        engine.load_weights(((name, weight.clone()) for name, weight in other.named_parameters()), version=9)
        finish(engine, requests)
        done = [(prompt, each) for prompt, request in zip(prompts, requests, strict=True) for each in request.take()]
        assert len(done) == 6
        assert {span.version for _, completion in done for span in completion.spans} == {0, 9}
        assert any(len(completion.spans) == 2 for _, completion in done)
        for version, weights in ((0, before), (9, other)):
            spans = [each for prompt, completion in done for each in spans_of(version, prompt, completion)]
            exact = exact_logprobs(weights, [(before, tokens) for before, tokens, _ in spans])
            exact.assert_near([logprob for _, _, logprobs in spans for logprob in logprobs])
        model.load_state_dict(own)


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with other weights."""
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return other


def asked(prompts: list[list[int]], groups: list[tuple[Completion, ...]], params: SamplingParams) -> list[Request]:
    """Requests for these very completions, by their seeds."""
    return [
        Request(prompt, params, [Draft(completion.seed) for completion in group])
        for prompt, group in zip(prompts, groups, strict=True)
    ]


def finish(engine: Engine, requests: list[Request]) -> None:
    """Samples on until nothing is left to be drawn of these."""
    while any(request.drafts for request in requests):
        engine.step()


def _by_seed(completions: Iterable[Completion]) -> dict[int, list[int]]:
    return {completion.seed: completion.token_ids.tolist() for completion in completions}


def spans_of(
    version: int, prompt: list[int], completion: Completion
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """What this version drew: all that stood before, the tokens, and their log-probabilities."""
    tokens, logprobs, start = completion.token_ids.tolist(), completion.logprobs.tolist(), 0
    for span in completion.spans:
        end = start + span.num_tokens
        if span.version == version:
            yield [*prompt, *tokens[:start]], tokens[start:end], logprobs[start:end]
        start = end
    assert start == len(tokens) == len(logprobs)


def _tokens(groups: list[tuple[Completion, ...]]) -> list[list[tuple[int, ...]]]:
    return [[completion.token_ids.tolist() for completion in group] for group in groups]
