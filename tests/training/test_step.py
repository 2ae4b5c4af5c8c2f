"""One rollout's learning: the gradient is the definition's however the work is split; what stops and explains it."""

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from definition import defined
from made_groups import make_group, off_policy, prompts_and_tokens, sampled_groups

from negaware.models.logprobs import head_of
from negaware.models.residual import keep_residual_float32
from negaware.training.pack import answers_of, collate
from negaware.training.step import NonFiniteLossError, Trainer
from negaware.types import Group, Span
from rounding import Exact, exact_logprobs, exactly, gamma
from tiny_models import MODELS, llama

FORMS = {
    "nft": ("nft", {}),
    "nft_sequence": ("nft", {"ratio": "sequence", "epsilon": 0.8}),
    "rft": ("rft", {}),
    "grpo": ("grpo", {}),
    "dr_grpo": ("dr_grpo", {}),
    "dapo": ("dapo", {}),
}
OTHERS = {
    "nft_maxrl": ("nft", {"prompt_weight": "maxrl", "positive_weight": 0.5}),
    "rft_weighted": ("rft", {"prompt_weight": "one_minus_rate"}),
    "asymre": ("asymre", {}),
    "cispo": ("cispo", {"cap": 1.2}),
    "dppo": ("dppo", {"delta": 0.01, "cap": 1.2}),
    "gspo": ("gspo", {"clip_low": 0.02, "clip_high": 0.03}),
    "infonca": ("infonca", {"beta": 0.5}),
    "maxrl": ("maxrl", {}),
    "psr_nsr": ("psr_nsr", {}),
    "real": ("real", {}),
    "signed": ("signed", {}),
    "topr": ("topr", {}),
}
ALL = FORMS | OTHERS
FORM_BY_FORM = [*FORMS, "real", *(pytest.param(form, marks=pytest.mark.slow) for form in OTHERS if form != "real")]


def train_without_updating(trainer: Trainer, groups: Sequence[Group], seed: int = 0) -> tuple[torch.Tensor, dict]:
    """The first optimizer step's gradient, flat, and the step's metrics."""
    gradients = []

    def collect(norm: torch.Tensor) -> None:
        masters = trainer.optimizer.masters.values()
        gradients.append(torch.cat([m.grad.flatten() for m in masters if m.grad is not None]))
        trainer.optimizer.discard_gradients()

    trainer.optimizer.step = collect
    metrics = trainer.step(groups, seed)
    return gradients[0], metrics


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@cache
def groups_of(name: str) -> tuple[Group, ...]:
    return tuple(off_policy(sampled_groups(MODELS[name](0))))


@cache
def defined_by(form: str, name: str) -> tuple[Exact, Exact, Exact]:
    return defined(MODELS[name](0), groups_of(name), *ALL[form])


@pytest.mark.parametrize(
    ("form", "name"),
    [(form, name) for form in FORMS for name in ("llama", "gpt2", "gemma2")]
    + [("infonca", "llama"), ("real", "llama")]
    + [pytest.param(form, "gpt2", marks=pytest.mark.slow) for form in OTHERS],
)
def test_gradient_and_loss_are_those_of_the_definition(form, name, make_trainer):
    gradient, loss, norm = defined_by(form, name)
    trainer = make_trainer(MODELS[name](0), *ALL[form], micro_batch_tokens=60)
    found, metrics = train_without_updating(trainer, groups_of(name))
    gradient.assert_near(found)
    loss.assert_near(metrics["train/loss"])
    norm.assert_near(metrics["train/grad_norm"])


@pytest.mark.parametrize("form", FORM_BY_FORM)
def test_the_gradient_does_not_depend_on_how_the_work_is_split(form, make_trainer):
    objective, options = ALL[form]
    groups = groups_of("llama")

    def gradient(groups=groups, seed=0, shares=True, **training):
        trainer = make_trainer(llama(0), objective, options, **{"micro_batch_tokens": 10_000} | training)
        trainer.decoder.shares_questions = shares
        return train_without_updating(trainer, groups, seed)[0]

    exact, *_ = defined_by(form, "llama")
    swapped = [make_group(g.prompt_ids, g.completions[::-1], [v.correct for v in reversed(g.verdicts)]) for g in groups]
    splits = {
        "all at once": gradient(),
        "one row at a time": gradient(micro_batch_tokens=1),
        "small micro-batches": gradient(micro_batch_tokens=64),
        "one answer a row": gradient(shares=False),
        "one answer a row, small micro-batches": gradient(shares=False, micro_batch_tokens=40),
        "groups in another order": gradient(groups=groups[::-1], seed=5),
        "answers in another order": gradient(groups=swapped),
    }
    for found in splits.values():
        exact.assert_near(found)


@pytest.mark.parametrize("objective", ["real", "infonca"])
def test_groups_are_seen_under_the_weights_of_each_optimizer_step(objective, make_trainer):
    """The second step's gradient, of the same group again, is the definition's at the weights that the first left."""
    (group,) = off_policy(sampled_groups(llama(0), num_groups=1))
    options = {"beta": 0.5} if objective == "infonca" else {}
    trainer = make_trainer(llama(0), objective, options, optimizer_steps=2, micro_batch_tokens=40, learning_rate=1e-2)
    assert len(trainer.pack([answers_of(group)])[0]) > 1
    found, step = [], trainer.optimizer.step

    def collect(norm: torch.Tensor) -> None:
        found.append(torch.cat([master.grad.flatten() for master in trainer.optimizer.masters.values()]))
        defined(trainer.network.model, [group], objective, options)[0].assert_near(found[-1])
        step(norm)

    trainer.optimizer.step = collect
    trainer.step([group, group], 0)
    assert len(found) == 2
    assert relative(found[1], found[0]) > 0.05


def test_recomputed_on_policy_gives_the_gradient_of_recorded(make_trainer):
    groups = sampled_groups(llama(0))
    recorded, metrics = train_without_updating(make_trainer(llama(0)), groups)
    recomputed, _ = train_without_updating(make_trainer(llama(0), old_logprobs="recomputed"), groups)
    exact, *_ = defined(llama(0), groups, "nft", {})
    exact.assert_near(recorded)
    exact.assert_near(recomputed, times=2)  # what both measure from, π_old, is rounded once more
    assert metrics["train/sampler_difference"] <= exact_logprobs(llama(0), prompts_and_tokens(groups)).mean_difference()


def test_recomputed_forgets_what_the_sampler_recorded_but_still_reports_the_difference(make_trainer):
    groups = sampled_groups(llama(0))
    right, _ = train_without_updating(make_trainer(llama(0)), groups)
    distorted = off_policy(groups, size=0.5)
    wrong, _ = train_without_updating(make_trainer(llama(0)), distorted)
    recomputed, metrics = train_without_updating(make_trainer(llama(0), old_logprobs="recomputed"), distorted)
    exact, *_ = defined(llama(0), groups, "nft", {})
    exact.assert_near(right)
    exact.assert_near(recomputed, times=2)
    assert relative(wrong, right) > 0.01
    assert 0.2 < metrics["train/sampler_difference"] < 0.3  # the mean of |uniform(−0.5, 0.5)| is 0.25


def test_at_another_temperature_sampler_and_trainer_still_agree(make_trainer):
    groups = sampled_groups(llama(0), temperature=0.6)
    _, metrics = train_without_updating(make_trainer(llama(0), temperature=0.6), groups)
    _, untempered = train_without_updating(make_trainer(llama(0)), groups)
    allowed = exact_logprobs(llama(0), prompts_and_tokens(groups), temperature=0.6).mean_difference()
    assert metrics["train/sampler_difference"] <= allowed < 0.05 < untempered["train/sampler_difference"]


def test_the_sampler_difference_leaves_out_groups_of_older_weights(make_trainer):
    groups = sampled_groups(llama(0), num_groups=4)
    stale = [replace(done, logprobs=tuple(p - 1 for p in done.logprobs)) for done in groups[0].completions]
    fresh = [
        replace(group, completions=tuple(replace(d, spans=(Span(3, d.num_tokens),)) for d in group.completions))
        for group in groups
    ]
    trainer = make_trainer(llama(0), optimizer_steps=1)
    metrics = trainer.step([replace(groups[0], completions=tuple(stale)), *fresh[1:]], 0)
    assert (
        metrics["train/sampler_difference"] <= exact_logprobs(llama(0), prompts_and_tokens(fresh[1:])).mean_difference()
    )


def test_every_group_is_trained_once_in_mini_batches_of_almost_one_size(make_trainer):
    groups, told = sampled_groups(llama(0), num_groups=7), []
    trainer = make_trainer(llama(0), optimizer_steps=3)
    sizes = []
    original = trainer.pack
    trainer.pack = lambda questions: sizes.append(len(questions)) or original(questions)
    metrics = trainer.step(groups, 0, told.append)
    num_tokens = sum(done.num_tokens for group in groups for done in group.completions)
    assert sorted(sizes) == [2, 2, 3]
    assert metrics["train/num_optimizer_steps"] == trainer.optimizer.num_steps_done == 3
    assert sum(told) == metrics["train/num_tokens"] == num_tokens
    assert make_trainer(llama(0), optimizer_steps=9).step(groups[:2], 0)["train/num_optimizer_steps"] == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("objective", ["nft", "rft", "grpo"])
def test_a_loss_that_is_not_finite_stops_before_the_optimizer(value, objective, make_trainer):
    groups = sampled_groups(llama(0))
    spoilt = groups[2].completions[[verdict.correct for verdict in groups[2].verdicts].index(True)]
    completions = tuple(
        dataclasses.replace(done, logprobs=(value,) * len(done.logprobs)) if done is spoilt else done
        for done in groups[2].completions
    )
    groups[2] = dataclasses.replace(groups[2], completions=completions)
    trainer = make_trainer(llama(0), objective, micro_batch_tokens=50)
    before = {name: weight.clone() for name, weight in trainer.network.model.named_parameters()}
    if (objective == "grpo" and value != value) or objective != "grpo":
        with pytest.raises(
            NonFiniteLossError, match=r"The (loss|gradient norm) of optimizer step 1 is .* In a new run, lower training"
        ):
            trainer.step(groups, 0)
        assert all(torch.equal(before[name], weight) for name, weight in trainer.network.model.named_parameters())
        assert all(master.grad is None for master in trainer.optimizer.masters.values())
        assert trainer.optimizer.num_steps_done == 0
    else:  # an infinite ratio is clipped, and the step is an ordinary one
        assert math.isfinite(trainer.step(groups, 0)["train/loss"])


@pytest.mark.parametrize("form", FORM_BY_FORM)
def test_metrics_lie_where_they_must(form, make_trainer):
    objective, options = ALL[form]
    groups = off_policy(sampled_groups(llama(0)), size=0.6)
    metrics = make_trainer(llama(0), objective, options, optimizer_steps=2).step(groups, 0)
    assert all(math.isfinite(value) for value in metrics.values())
    shares = {name: value for name, value in metrics.items() if "/share_" in name}
    assert shares
    assert all(0 <= share <= 1 for share in shares.values())
    assert 0 < metrics["train/entropy"] < math.log(61)
    if objective in ("grpo", "dr_grpo", "dapo"):
        assert 0 < shares["train/share_at_clip"] < 0.5
    if form == "nft":
        assert 0 < shares["train/share_at_epsilon"] < 1
        assert shares["train/share_pass_rate_clamped"] == 0


def test_entropy_is_the_mean_over_answer_tokens(make_trainer):
    model = llama(0)
    groups = sampled_groups(model)
    double = copy.deepcopy(model).double()

    def compute() -> list[torch.Tensor]:
        entropies = []
        with torch.no_grad():
            for prompt, answer in prompts_and_tokens(groups[:2]):
                logprobs = double(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                entropies.append(-(logprobs.exp() * logprobs).sum(-1))
        return [torch.cat(entropies).mean()]

    _, metrics = train_without_updating(make_trainer(model), groups[:2])
    exactly(compute)[0].assert_near(metrics["train/entropy"])


@pytest.mark.parametrize("prompt_weight", ["one_minus_rate", "uniform", "grpo"])
def test_the_weight_of_each_side_on_policy_is_the_closed_form(prompt_weight, make_trainer):
    """ω a right token, ω r̂/(1 − r̂) a wrong one: under 1 − r̂ that is 1 − r̂ against r̂."""
    groups = sampled_groups(llama(0))
    # An ε just below 1 leaves the value 1 that R = 1 gives alone, and float noise decides nothing.
    options = {"prompt_weight": prompt_weight, "epsilon": 0.5}
    _, metrics = train_without_updating(make_trainer(llama(0), objective_options=options), groups)
    right = wrong = num_tokens = 0.0
    for group in groups:
        rate = group.pass_rate
        weight = {"one_minus_rate": 1 - rate, "uniform": 1.0, "grpo": math.sqrt((1 - rate) / rate)}[prompt_weight]
        for done, verdict in zip(group.completions, group.verdicts, strict=True):
            num_tokens += done.num_tokens
            if verdict.correct:
                right += weight * done.num_tokens
            else:
                wrong += weight * rate / (1 - rate) * done.num_tokens
    # A token's weight is its gradient, ω R-times-something whose logarithm changes by at most 1/(1 − r̂) ≤ 6 times what
    # log R does: the difference of two log-probabilities that are equal but for rounding. The sums have float32 terms.
    error = 6 * exact_logprobs(llama(0), prompts_and_tokens(groups)).mean_difference()
    assert metrics["train/weight_right"] == pytest.approx(right / num_tokens, rel=gamma(num_tokens) + error)
    assert metrics["train/weight_wrong"] == pytest.approx(wrong / num_tokens, rel=gamma(num_tokens) + error)
    assert metrics["train/share_at_log_ratio_cap"] == metrics["train/share_at_epsilon"] == 0


def test_bfloat16_compute_follows_the_float32_gradient(make_trainer):
    """The same weights (rounded) and answers: the two gradients point the same way, and masters stay float32."""
    rounded = llama(0).to(torch.bfloat16)
    groups = sampled_groups(llama(0))
    exact, _ = train_without_updating(make_trainer(rounded.to(torch.float32), old_logprobs="recomputed"), groups)
    trainer = make_trainer(llama(0).to(torch.bfloat16), old_logprobs="recomputed", compute_dtype="bfloat16")
    found, metrics = train_without_updating(trainer, groups)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, exact, dim=0) > 0.99
    assert trainer.network.model.dtype == torch.bfloat16
    unit = torch.finfo(torch.bfloat16).eps / 2
    allowed = exact_logprobs(rounded, prompts_and_tokens(groups), unit=unit).mean_difference()
    assert 0 < metrics["train/sampler_difference"] <= allowed


def test_where_transformers_decodes_the_residual_stream_is_float32(make_trainer):
    tokens = torch.tensor([[5, 9, 30, 2, 17, 44]])
    models = {name: MODELS["mistral"](0) for name in ("wide", "plain")}
    for model in models.values():
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    assert keep_residual_float32(models["wide"])
    models["trained"] = make_trainer(MODELS["mistral"](0), compute_dtype="bfloat16").network.model
    with torch.no_grad():
        hidden = {name: model.get_decoder()(tokens, use_cache=False)[0] for name, model in models.items()}
    assert torch.equal(hidden["trained"], hidden["wide"])
    assert not torch.equal(hidden["trained"], hidden["plain"])


def test_the_trainer_uses_the_models_live_head(make_trainer):
    trainer = make_trainer(llama(0))
    trainer.step(sampled_groups(llama(0)), 0)
    model = trainer.network.model
    head = trainer.network.head.of(model)
    assert head.weight is model.lm_head.weight
    assert torch.equal(head_of(model).weight, trainer.optimizer.masters["lm_head.weight"])


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # the fused decoder's way, and transformers' own
def test_recomputed_activations_give_the_same_gradient_and_keep_less(name, make_trainer):
    kept_bytes, groups = {}, sampled_groups(MODELS[name](0), num_groups=3)
    exact, *_ = defined(MODELS[name](0), groups, "nft", {})
    for activations in ("kept", "recomputed"):
        trainer = make_trainer(MODELS[name](0), activations=activations, micro_batch_tokens=10_000)
        exact.assert_near(train_without_updating(trainer, groups)[0])
        ((micro_batch,),) = trainer.pack([answers_of(group) for group in groups])
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logprobs, _ = trainer.logprobs(collate(micro_batch.rows))
        assert logprobs.requires_grad
        kept_bytes[activations] = sum(sizes)
    assert kept_bytes["recomputed"] < 0.5 * kept_bytes["kept"]
