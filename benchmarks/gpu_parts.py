"""The parts of the check on a GPU, each run in a process of its own: `gpu_parts.py NAME RESULT DEVICE`.

A part returns its figures, or raises with what it found. On the CPU each is small enough for seconds, and takes the way
that CUDA would (decode steps of fixed shapes, FlexAttention) as far as a CPU has it. It knows neither time nor order.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from contenders.rollouts import synthetic_groups
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from negaware.models.cuda import compiled as cuda
from negaware.models.decoder import CudaDecoder
from negaware.models.load import compute_dtype
from negaware.models.network import make_ready
from negaware.objectives import OBJECTIVES
from negaware.rollout.engine import SamplingParams
from negaware.rollout.local import LocalEngine
from negaware.rollout.reference import ReferenceEngine
from negaware.training.options import TrainingOptions
from negaware.training.step import LossSettings, Trainer
from negaware.types import Completion, Group, Problem, Verdict

ROOT = Path(__file__).parents[1]
QWEN = {
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
"""Qwen2.5-0.5B's shapes."""
TOY = QWEN | {
    **{"vocab_size": 101, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}


def small_model(device: str) -> PreTrainedModel:
    """The same random weights on every device: a llama of two layers, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **TOY | {"tie_word_embeddings": False}, initializer_range=0.2, bos_token_id=None, eos_token_id=None
    )
    return LlamaForCausalLM(config).eval().to(device)


def timed_model(device: str) -> PreTrainedModel:
    """Random weights in the shapes of a model of 0.5B parameters; on the CPU in toy shapes."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**(TOY if device == "cpu" else QWEN)))
    return model.eval()


def graph_engine(model: PreTrainedModel, max_sequences: int) -> LocalEngine:
    """The local engine as it is on CUDA: on the CPU its steps have fixed shapes too, but run as they are."""
    decoder = CudaDecoder(model, shares_questions=False)
    decoder.rows.grows = False
    return LocalEngine(replace(make_ready(model, None), decoder=decoder), max_sequences)


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def demand(holds: bool, figures: dict[str, Any], what: str) -> None:
    if not holds:
        raise AssertionError(f"{what}: {figures}")


def graphs(device: str) -> dict[str, Any]:
    """Captured steps say what the reference engine says, replayed in a second call and after weights were swapped."""
    model = small_model(device)
    engine, reference = graph_engine(model, 10), ReferenceEngine(model)
    prompts = [[(7 * i + j) % 100 + 1 for j in range(length)] for i, length in enumerate((2, 50, 7, 20, 3, 12))]
    params, compared, same, difference = SamplingParams(40, stop_token_ids=(4, 5)), 0, 0, 0.0
    for seed in (0, 1, 2):
        if seed == 2:
            weights = [(name, weight * 0.9) for name, weight in model.named_parameters()]
            engine.load_weights(weights, version=1)
        found, expected = (each.generate(prompts, 2, params, seed) for each in (engine, reference))
        for group, wanted_group in zip(found, expected, strict=True):
            for done, wanted in zip(group, wanted_group, strict=True):
                length = min(done.num_tokens, wanted.num_tokens)
                differ = np.flatnonzero(done.token_ids[:length] != wanted.token_ids[:length])
                same_until = differ[0] if len(differ) else length
                gaps = np.abs(done.logprobs[:same_until] - wanted.logprobs[:same_until])
                difference, compared = max(difference, float(gaps.max(initial=0.0))), compared + 1
                same += np.array_equal(done.token_ids, wanted.token_ids)
    decoder = engine.network.decoder
    assert isinstance(decoder, CudaDecoder)
    figures = {
        "completions": compared,
        "same_tokens": same,
        "largest_logprob_difference": difference,
        "shapes": len(decoder.rows.steps),
    }
    # A token may differ where a uniform number lies on a border; log-probabilities before it may not.
    demand(difference < 1e-3, figures, "log-probabilities differ from the reference engine's")
    demand(same >= 0.8 * compared, figures, "tokens differ from the reference engine's")
    return figures


def flex(device: str) -> dict[str, Any]:
    """FlexAttention over rows that share a question, against float64 under a dense mask: values and gradients."""
    from torch.nn.attention import flex_attention
    from torch.nn.functional import scaled_dot_product_attention

    if device == "cpu":  # there torch refuses gradients, which the plain implementation does have
        flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
        flex_attention._validate_device = lambda *_: None
    figures = {}
    layouts = [[(5, 4, 8, 3), (1, 2), (20, 7)], [(129, 10, 128)]]
    if device != "cpu":
        layouts.append([(512, *[512] * 7)])
    for rows in layouts:
        parts = [torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)) for lengths in rows]
        segments = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1).to(device)
        length = segments.shape[1]
        order = torch.arange(length, device=device)
        keys, queries = segments[:, None, :], segments[:, :, None]
        seen = ((order[:, None] >= order) & ((keys == queries) | (keys == 0)))[:, None]
        real = segments >= 0
        for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 2e-2)):
            torch.manual_seed(0)
            states = [torch.randn(len(rows), heads, length, 64, device=device).to(dtype) for heads in (14, 2, 2)]
            states = [state.requires_grad_() for state in states]
            exact = [state.detach().double().requires_grad_() for state in states]
            found = cuda.flex_rows(*states, cuda.block_mask(segments), 0.125)[real]
            wanted = scaled_dot_product_attention(*exact, attn_mask=seen, scale=0.125, enable_gqa=True)
            wanted = wanted.transpose(1, 2)[real]
            upstream = torch.randn_like(wanted)
            gradients = torch.autograd.grad((found.double() * upstream).sum(), states)
            expected = torch.autograd.grad((wanted * upstream).sum(), exact)
            errors = [relative(found, wanted), *map(relative, gradients, expected)]
            name = f"{len(rows)}x{length}_{str(dtype).removeprefix('torch.')}"
            figures[name] = max(errors)
            demand(max(errors) < bound, figures, f"values and gradients {errors} are further from float64 than {bound}")
    return figures


def made_groups(model: PreTrainedModel) -> list[Group]:
    """Five questions of six answers, sampled from the model, every other one right; recorded as if off-policy."""
    prompts = [[(5 * i + j) % 100 + 1 for j in range(3 + 4 * i)] for i in range(5)]
    answers = ReferenceEngine(model).generate(prompts, 6, SamplingParams(14, stop_token_ids=(1, 2, 3, 4)), 0)
    verdicts = tuple(Verdict(k % 2 == 0, "correct" if k % 2 == 0 else "wrong") for k in range(6))
    return [
        Group(Problem(str(i), "?", "!"), tuple(prompt), tuple(map(recorded_otherwise, group)), ("",) * 6, verdicts)
        for i, (prompt, group) in enumerate(zip(prompts, answers, strict=True))
    ]


def recorded_otherwise(done: Completion) -> Completion:
    """With log-probabilities that are off by 0.25 on average, so that no likelihood ratio is 1."""
    shifts = np.resize(np.array([0.4, -0.3, 0.2, -0.1], np.float32), done.num_tokens)
    return replace(done, logprobs=done.logprobs + shifts)


def gradient_and_metrics(model: PreTrainedModel, groups: list[Group], tokens: int) -> tuple[Tensor, dict[str, float]]:
    options = TrainingOptions(
        compute_dtype="float32", optimizer_steps=1, learning_rate=1e-3, micro_batch_tokens=tokens, weight_decay=0.0
    )
    network = make_ready(model, torch.float32)
    trainer = Trainer(network, LossSettings(OBJECTIVES["nft"], {}, 1.0, 14), options, num_steps=1)
    gradients: list[Tensor] = []
    update = trainer.optimizer.step

    def keep(norm: Tensor) -> None:
        masters = trainer.optimizer.masters.values()
        gradients.append(torch.cat([m.grad.flatten().cpu() for m in masters if m.grad is not None]))
        update(norm)

    trainer.optimizer.step = keep  # type: ignore[method-assign]
    metrics = trainer.step(groups, seed=0)
    return gradients[0], metrics


def nft_step(device: str) -> dict[str, Any]:
    """One NFT step: loss, gradient and updated weights are the CPU's, where the work is split otherwise."""
    groups = made_groups(small_model("cpu"))
    models = small_model("cpu"), small_model(device)
    before = torch.cat([weight.detach().flatten() for weight in small_model("cpu").parameters()])
    expected, on_cpu = gradient_and_metrics(models[0], groups, 64)
    found, metrics = gradient_and_metrics(models[1], groups, 4096)
    weights = [torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()]) for model in models]
    figures = {
        "loss": metrics["train/loss"],
        "loss_on_cpu": on_cpu["train/loss"],
        "gradient_relative_difference": relative(found, expected),
        "update_relative_difference": relative(weights[1] - before, weights[0] - before),
        "sampler_difference": metrics["train/sampler_difference"],
        "sampler_difference_on_cpu": on_cpu["train/sampler_difference"],
    }
    demand(abs(figures["loss"] - figures["loss_on_cpu"]) < 1e-4, figures, "the loss is not the CPU's")
    demand(figures["gradient_relative_difference"] < 1e-3, figures, "the gradient is not the CPU's")
    # Adam's first update is the gradient's sign: where that is rounding alone it may be either.
    demand(figures["update_relative_difference"] < 0.05, figures, "the update is not the CPU's")
    apart = abs(figures["sampler_difference"] - figures["sampler_difference_on_cpu"])
    demand(apart < 1e-3, figures, "the log-probabilities are not the CPU's")
    return figures


def synchronised() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib() -> float:
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0


def decode(device: str) -> dict[str, Any]:
    """Sampled tokens a second in bfloat16: 256 rows from 64 questions of 128 tokens, 256 new tokens each."""
    questions, prompt, new = (4, 8, 6) if device == "cpu" else (64, 128, 256)
    model = timed_model(device).to(torch.bfloat16)
    engine = graph_engine(model, 4 * questions)
    vocabulary = model.config.vocab_size
    prompts = [[(31 * i + j) % (vocabulary - 1) + 1 for j in range(prompt)] for i in range(questions)]
    seconds = []
    for seed in (0, 1):  # the first captures the graphs
        start = synchronised()
        groups = engine.generate(prompts, 4, SamplingParams(new), seed)
        seconds.append(synchronised() - start)
    tokens = sum(done.num_tokens for group in groups for done in group)
    demand(tokens == questions * 4 * new, {"tokens": tokens}, "answers ended though no stop token was given")
    return {
        "tokens_per_second": round(tokens / seconds[1]),
        "seconds": round(seconds[1], 3),
        "seconds_with_captures": round(seconds[0], 3),
        "peak_gib": peak_gib(),
    }


def training(device: str, row: int) -> dict[str, Any]:
    """Tokens trained a second in bfloat16, with rows of a question and seven answers of one length."""
    answers = 7
    length = (16 if device == "cpu" else row) // (answers + 1)
    model = timed_model(device)
    shape = {"questions": 2 if device == "cpu" else 65_536 // row, "question_tokens": length}
    groups = synthetic_groups(shape | {"answer_tokens": [length] * answers}, answers, model.config.vocab_size)
    options = TrainingOptions(optimizer_steps=1, micro_batch_tokens=max(16_384, row))
    network = make_ready(model, compute_dtype(options.compute_dtype, device))
    trainer = Trainer(network, LossSettings(OBJECTIVES["nft"], {}, 1.0, length), options, num_steps=3)
    seconds = []
    for seed in (0, 1, 2):  # what is compiled is compiled in the first
        start = synchronised()
        metrics = trainer.step(groups, seed)
        seconds.append(synchronised() - start)
    demand(math.isfinite(metrics["train/loss"]), {"loss": metrics["train/loss"]}, "the loss is not finite")
    tokens = len(groups) * (answers + 1) * length
    return {
        "tokens_per_second": round(tokens / min(seconds[1:])),
        "seconds": round(min(seconds[1:]), 3),
        "seconds_with_compiling": round(seconds[0], 3),
        "tokens": tokens,
        "peak_gib": peak_gib(),
    }


def conformance(device: str) -> dict[str, Any]:
    """The suite that every engine passes, on the device."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        tests = ["tests/rollout/test_engines.py", "-k", "TestLocalEngine and not Without and (greedy or stop)"]
        if device != "cpu":
            tests[2] = "TestReferenceEngine or (TestLocalEngine and not Without)"
            tests += ["-m", "not vllm"]  # every architecture, the slow tests' too
        options = ["-q", "-o", "filterwarnings=default", "-p", "no:cacheprovider", f"--junitxml={report}"]
        environment = os.environ | {"NEGAWARE_TEST_DEVICE": device}
        subprocess.run([sys.executable, "-m", "pytest", *tests, *options], cwd=ROOT, env=environment, check=False)
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
        failures = {
            f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}": (part.get("message") or "")[:300]
            for case in suite.iter("testcase")
            for part in case
            if part.tag in ("failure", "error")
        }
    figures = {"tests": int(suite.get("tests", 0)), "failures": failures}
    demand(not failures and figures["tests"] > 0, figures, f"{len(failures)} tests failed")
    return figures


PARTS: dict[str, Callable[[str], dict[str, Any]]] = {
    "graphs": graphs,
    "flex": flex,
    "nft_step": nft_step,
    "decode": decode,
    "training_1k": lambda device: training(device, 1024),
    "training_4k": lambda device: training(device, 4096),
    "conformance": conformance,
}


def main(name: str, result: str, device: str) -> int:
    found: dict[str, Any] = {"state": "passed"}
    try:
        found["figures"] = PARTS[name](device)
    except Exception as error:
        traceback.print_exc()
        found = {"state": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return 0 if found["state"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
