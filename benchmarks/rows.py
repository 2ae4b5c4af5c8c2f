"""The rows of the benchmark: who takes part, what each is asked, and which figures come of it. Data, no code."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from typing import Any

from figures import Figure
from workers import Contender

CORES = len(os.sched_getaffinity(0))
KEEPS_MEMORY = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=67108864",
)
"""Lets a contender keep large freed blocks, as negaware does: TRL's larger batches and vLLM gain from it too."""
OURS = Contender("ours", environment=(("GOMP_SPINCOUNT", "1000"),))  # as negaware's command line does
GENERATE = Contender("generate", environment=(KEEPS_MEMORY,))
PADDED = Contender("padded", environment=(("GOMP_SPINCOUNT", "1000"), KEEPS_MEMORY))
VERIFIER = Contender("verifier")


def trl(limit: int) -> Contender:
    """TRL with a trainer for answers up to `limit` tokens."""
    return Contender("trl_grpo", environment=(KEEPS_MEMORY,), arguments=json.dumps({"limit": limit}))


def vllm(python: str) -> Contender:
    """vLLM in an environment of its own, all cores bound, with the OpenMP library that its guide has one preload."""
    openmp = os.path.join(os.path.dirname(os.path.dirname(python)), "lib", "libiomp5.so")
    return Contender(
        "vllm_cpu",
        python=python,
        environment=(
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            ("VLLM_CPU_KVCACHE_SPACE", "4"),
            ("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, sorted(os.sched_getaffinity(0))))),
            ("VLLM_NO_USAGE_STATS", "1"),
            ("LD_PRELOAD", openmp if os.path.exists(openmp) else ""),
            KEEPS_MEMORY,
        ),
    )


@dataclass(frozen=True)
class Contestant:
    """One line of a row: who, and the command it is given."""

    label: str
    contender: Contender
    command: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What is measured in turn, repetition by repetition, and what comes of it."""

    name: str
    title: str
    contestants: tuple[Contestant, ...]
    figures: tuple[Figure, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    quick: bool = False
    warm_up: bool = False
    """Runs every contestant once, unmeasured, before the first repetition."""


STEP_COLUMNS = {
    "seconds": "seconds",
    "tokens": "tokens",
    "mean_tokens": "mean",
    "sampling_seconds": "sampling s",
    "grading_seconds": "grading s",
    "training_seconds": "training s",
    "pass_rate": "pass rate",
    "trained_groups": "groups trained",
    "sampling_gflop": "sampling GFLOP",
    "training_gflop": "training GFLOP",
    "decode_gflops_at_128": "decode GFLOP/s",
    "training_gflops": "training GFLOP/s",
}
SAMPLING_COLUMNS = {"tokens_per_second": "tokens/s", "seconds": "seconds", "tokens": "tokens", "mean_tokens": "mean"}


def step_row(limit: int) -> Row:
    """Whole steps, ours against TRL; at 24 tokens also over the limit of the matrix products."""
    command = {"do": "step", "limit": limit}
    contestants = (
        Contestant("negaware", OURS, command),
        Contestant("matrix products", OURS, {"do": "limit"}),
        Contestant("TRL GRPOTrainer", trl(limit), command),
        Contestant("negaware, informative", OURS, command | {"informative_only": True}),
    )
    figures = [Figure(f"step_vs_trl_{limit}", ("TRL GRPOTrainer", "seconds"), ("negaware", "seconds"))]
    suffix = "" if limit == 24 else f"_{limit}"
    figures += [
        Figure(f"step_over_limit{suffix}", ("negaware", "seconds"), ("matrix products", "seconds")),
        Figure(
            f"sampling_over_limit{suffix}", ("negaware", "sampling_seconds"), ("matrix products", "sampling_seconds")
        ),
        Figure(
            f"training_over_limit{suffix}", ("negaware", "training_seconds"), ("matrix products", "training_seconds")
        ),
        Figure(
            f"step_informative_vs_trl_{limit}", ("TRL GRPOTrainer", "seconds"), ("negaware, informative", "seconds")
        ),
    ]
    if limit == 24:
        figures.append(Figure("logprob_difference", ("negaware", "logprob_difference")))
    title = f"Whole step: 16 questions × 8 answers of up to {limit} tokens, 2 optimizer steps"
    return Row(f"step_{limit}", title, contestants, tuple(figures), STEP_COLUMNS, quick=limit == 24)


def sampling_row(limit: int, vllm_python: str) -> Row:
    """Sampling alone."""
    contestants = [
        Contestant("negaware", OURS, {"do": "sample", "limit": limit}),
        Contestant("vLLM CPU", vllm(vllm_python), {"limit": limit}),
    ]
    figures = [
        Figure(f"sampling_vs_vllm_{limit}", ("negaware", "tokens_per_second"), ("vLLM CPU", "tokens_per_second"))
    ]
    if limit == 24:
        contestants.append(Contestant("generate", GENERATE, {"limit": limit}))
        figures.append(
            Figure("sampling_vs_generate_24", ("negaware", "tokens_per_second"), ("generate", "tokens_per_second"))
        )
    title = f"Sampling alone: 128 answers of up to {limit} tokens"
    return Row(f"sampling_{limit}", title, tuple(contestants), tuple(figures), SAMPLING_COLUMNS)


def training_row(shape: str) -> Row:
    """Training alone, packed against padded."""
    command = {"do": "train", "shape": shape}
    return Row(
        f"training_{shape}",
        f"Training alone, {shape} answers",
        (Contestant("negaware", OURS, command), Contestant("padded", PADDED, command)),
        (
            Figure(f"training_vs_padded_{shape}", ("padded", "seconds"), ("negaware", "seconds")),
            Figure(f"memory_vs_padded_{shape}", ("padded", "growth_mb"), ("negaware", "growth_mb")),
        ),
        {"seconds": "seconds", "tokens": "answer tokens", "peak_mb": "peak MB", "growth_mb": "growth MB"},
        warm_up=True,
    )


def verifier_row() -> Row:
    """Grading, on one core each."""
    contestants = tuple(
        Contestant(f"{label}, {kind}", VERIFIER, {"who": who, "kind": kind})
        for kind in ("numeric", "latex")
        for label, who in (("negaware", "ours"), ("math-verify", "math_verify"))
    )
    rate = "per_second"
    figures = (
        Figure("grade_numeric_per_second", ("negaware, numeric", rate)),
        Figure("grade_numeric_vs_math_verify", ("negaware, numeric", rate), ("math-verify, numeric", rate)),
        Figure("grade_latex_per_second", ("negaware, latex", rate)),
        Figure("grade_latex_vs_math_verify", ("negaware, latex", rate), ("math-verify, latex", rate)),
    )
    return Row(
        "verifier", "Verifier, one core", contestants, figures, {"per_second": "answers/s", "right": "judged right"}
    )


def memory_row() -> Row:
    """Memory of the log-probabilities as the vocabulary or the tokens grow fourfold."""
    sizes = ((1024, 12288), (4096, 12288), (1024, 49152), (4096, 49152))
    contestants = tuple(
        Contestant(
            f"{tokens:,} tokens, vocabulary {vocabulary:,}",
            PADDED,
            {"do": "memory", "tokens": tokens, "vocabulary": vocabulary},
        )
        for tokens, vocabulary in sizes
    )
    first, longer, wider = (contestants[index].label for index in range(3))
    figures = (
        Figure("logits_memory_tokens_x4", (longer, "logits_mb"), (first, "logits_mb")),
        Figure("logits_memory_vocabulary_x4", (wider, "logits_mb"), (first, "logits_mb")),
    )
    columns = {"growth_mb": "growth MB", "gradients_mb": "of it gradients", "logits_mb": "logits part MB"}
    return Row("memory", "Memory of the log-probabilities", contestants, figures, columns, warm_up=True)


def all_rows(vllm_python: str) -> list[Row]:
    """Every row, in the order in which they run."""
    return [
        step_row(24),
        sampling_row(24, vllm_python),
        sampling_row(128, vllm_python),
        sampling_row(512, vllm_python),
        step_row(128),
        training_row("short"),
        training_row("long"),
        verifier_row(),
        memory_row(),
    ]


def default_vllm_python(root: str) -> str:
    """vLLM's python as `make bench` installs it."""
    return os.path.join(root, ".venv-vllm", "bin", os.path.basename(sys.executable))
