"""How time and memory of one whole step grow: with the answers' length, K, the questions and the model's width.

`python benchmarks/growth.py [--quick]`, from the repository's root, writes a table and a figure to docs/figures/. One
factor at a time is varied; a process of its own measures each. Answers have exactly the length asked for, as nothing
stops them. Everything is run twice: first from trimmed memory, for its peak (and as warm-up), then for its time.
growth_counts.py says what was to be expected.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from figures import number, table
from growth_counts import FACTORS, QUANTITIES, Factor, Model, Rates, Shape, expected_slope, upper_half, upper_slope
from growth_figure import figure
from memory import memory_and_time
from work import MODEL, synthetic_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from negaware.rollout.local import LocalEngine
    from negaware.training.step import Trainer

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "figures" / "cost_growth.md"
LEARNING_RATE = 1e-12
"""So small that every step samples from the same policy."""
WARM_UP = Shape(questions=2, completions=4, answer_tokens=8)
HEADINGS = dict(zip(QUANTITIES, ("sampling s", "training s", "sampling MiB", "training MiB"), strict=True))

Measured = dict[str, dict[str, Any]]
"""By factor: `rates`, and `points`, each with its `value` and the QUANTITIES."""


def build(model: PreTrainedModel, base: Shape) -> tuple[LocalEngine, Trainer]:
    """Engine and trainer on one model, warmed up: AdamW's state exists."""
    from negaware.models.load import compute_dtype
    from negaware.models.network import make_ready
    from negaware.objectives import OBJECTIVES
    from negaware.rollout.local import LocalEngine
    from negaware.training.options import TrainingOptions
    from negaware.training.step import LossSettings, Trainer

    options = TrainingOptions(
        optimizer_steps=base.optimizer_steps,
        micro_batch_tokens=base.micro_batch_tokens,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
    )
    loss = LossSettings(OBJECTIVES["nft"], {}, temperature=1.0, max_answer_tokens=1)
    network = make_ready(model, compute_dtype(options.compute_dtype))
    trainer = Trainer(network, loss, options, num_steps=1_000_000)
    engine = LocalEngine(network, base.max_sequences)
    measure(engine, trainer, WARM_UP)
    return engine, trainer


def measure(engine: LocalEngine, trainer: Trainer, shape: Shape) -> dict[str, float]:
    """One step: the QUANTITIES, and the number of answer tokens that were sampled and trained on."""
    from contenders.rollouts import alternating_verdicts

    from negaware.rollout.engine import SamplingParams
    from negaware.types import Group, Problem

    vocabulary = engine.network.description.vocabulary_size
    prompts = [synthetic_tokens(shape.prompt_tokens, place, vocabulary) for place in range(shape.questions)]
    params = SamplingParams(shape.answer_tokens)
    sampled, sampling = memory_and_time(lambda: engine.generate(prompts, shape.completions, params, seed=0))
    verdicts = alternating_verdicts(shape.completions)
    groups = [
        Group(Problem(str(place), "", "1"), tuple(prompt), answers, ("",) * shape.completions, verdicts)
        for place, (prompt, answers) in enumerate(zip(prompts, sampled, strict=True))
    ]
    metrics, training = memory_and_time(lambda: trainer.step(groups, seed=0))
    tokens = sum(answer.num_tokens for answers in sampled for answer in answers)
    assert tokens == metrics["train/num_tokens"] == shape.answers * shape.answer_tokens, "an answer ended early"
    return {
        "sampling_seconds": sampling["seconds"],
        "training_seconds": training["seconds"],
        "sampling_mib": sampling["growth_mb"],
        "training_mib": training["growth_mb"],
        "tokens": tokens,
    }


def measured_rates() -> Rates:
    """This machine's rates now: a bfloat16 product of a training step's size, and a sum over 256 MiB."""
    import torch

    values, weight = (torch.randn(rows, 1024).to(torch.bfloat16) for rows in (1024, 4096))
    long = torch.ones(2**26)

    def fastest(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(6):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    product = fastest(lambda: torch.nn.functional.linear(values, weight))
    return Rates(2.0 * 1024 * 1024 * 4096 / product, long.nbytes / fastest(long.sum))


def load_model(factor: Factor, value: int) -> PreTrainedModel:
    """The policy in float32, from which the masters are taken: SmolLM2-135M, or a random one of a width."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from negaware.models.load import load_model as load

    if factor.name != "width":
        return load(MODEL, torch.float32)[0]
    sizes = Model.of_width(value)
    heads = sizes.width // 64
    config = LlamaConfig(
        hidden_size=sizes.width,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        head_dim=64,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def serve(factor: Factor, values: Sequence[int]) -> None:
    """The process that measures a factor: a JSON line with the rates, then one for each value."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as negaware's command line does; torch's import reads it
    from negaware.models.cpu.memory import keep_freed_memory

    keep_freed_memory()
    print(json.dumps(asdict(measured_rates())), flush=True)
    built: tuple[LocalEngine, Trainer] | None = None
    for value in values:
        if built is None or factor.name == "width":
            built = None  # the model before must be gone before the next is made
            built = build(load_model(factor, value), factor.base)
        print(json.dumps({"value": value} | measure(*built, factor.shape(value))), flush=True)


def run(factor: Factor, values: Sequence[int]) -> dict[str, Any]:
    """A factor's measurements, from a fresh process."""
    command = [sys.executable, __file__, "--serve", factor.name, *map(str, values)]
    lines: list[dict[str, Any]] = []
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if "value" in lines[-1]:
                shown = "  ".join(f"{HEADINGS[name]} {number(lines[-1][name])}" for name in QUANTITIES)
                print(f"{factor.axis} {lines[-1]['value']}:  {shown}", file=sys.stderr, flush=True)
    if process.returncode != 0:
        raise SystemExit(f"Measuring {factor.title} ended with exit code {process.returncode}; its words are above.")
    print(f"{factor.title}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return {"rates": lines[0], "points": lines[1:]}


def slopes_of(factor: Factor, measured: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(measured, expected) slope over the upper half, by quantity."""
    points, rates = measured["points"], Rates(**measured["rates"])
    values = [point["value"] for point in points]
    return {
        name: (upper_slope(values, positive(points, name)), expected_slope(factor, values, name, rates))
        for name in QUANTITIES
    }


def positive(points: Sequence[Mapping[str, float]], name: str) -> list[float]:
    """The measurements, nothing below a hundredth of a MiB or a microsecond, so that they have a logarithm."""
    return [max(point[name], 1e-2 if name.endswith("mib") else 1e-6) for point in points]


def markdown(measured: Measured, about: str, picture: str) -> str:
    """Every factor's table of measurements, the table of slopes, and the file name of the figure."""
    parts = ["# How cost grows", "", about, ""]
    slopes: list[list[str]] = []
    for name, found in measured.items():
        factor = FACTORS[name]
        parts += [f"**{factor.title[0].upper()}{factor.title[1:]}.** {factor.describe()}.", ""]
        lines = [
            [f"{point['value']:,}", *(number(point[quantity]) for quantity in QUANTITIES)] for point in found["points"]
        ]
        parts += [table([factor.axis, *HEADINGS.values()], lines), ""]
        values = [point["value"] for point in found["points"]]
        span = f"{values[upper_half(values)[0]]:,}–{values[-1]:,}"
        for quantity, (slope, expected) in slopes_of(factor, found).items():
            limit, reason = factor.limits[quantity]
            what = f"{factor.title}: {HEADINGS[quantity].split()[0]} {'memory' if 'mib' in quantity else 'time'}"
            slopes.append([what, span, f"{slope:.2f}", f"{expected:.2f}", str(limit), reason])
    header = ["slope of", "over", "measured", "expected", "in the end", "why"]
    parts += [
        "Slopes in log-log, over the upper half of each range. *Expected* is that of a count over the same points: the "
        "operations and bytes that the work has to take, at this machine's rates of a matrix product and of reading "
        "memory (`benchmarks/growth_counts.py`). *In the end* is where it tends.",
        "",
        slope_table(header, slopes),
        "",
        f"![time and memory of a step, log-log]({picture})",
    ]
    return "\n".join(parts) + "\n"


def slope_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """As `figures.table`, but the last column holds a sentence, aligned to the left."""
    width = max(len(line[-1]) for line in (header, *lines))
    padded = [[*line[:-1], line[-1].ljust(width)] for line in (header, *lines)]
    return table(padded[0], padded[1:])


def describe(measured: Measured, quick: bool) -> str:
    """Where and when these figures come from."""
    from importlib.metadata import version

    on = machine()
    rates = [Rates(**found["rates"]) for found in measured.values()]
    operations, read = max(rate.operations for rate in rates), max(rate.bytes for rate in rates)
    command = f"python benchmarks/growth.py{' --quick' * quick}"
    return (
        f"`{command}`, {date.today().isoformat()}: {on['cores']} cores of {on['cpu']}, "
        f"torch {version('torch')}, transformers {version('transformers')}, float32 masters, bfloat16 compute; matrix "
        f"products {operations / 1e9:,.0f} GFLOP/s, memory {read / 1e9:.0f} GB/s. One whole step at each value. Memory "
        "is how far resident memory rose above what was resident before; weights, masters and AdamW's state are not in "
        "it. Prompts are 48 made-up tokens; no token stops an answer."
    )


def write(measured: Measured, about: str, output: Path) -> str:
    """The table, the figure, and the measurements as JSON, from which `--redraw` makes both again; gives the table."""
    output.parent.mkdir(parents=True, exist_ok=True)
    tables = markdown(measured, about, output.with_suffix(".svg").name)
    output.write_text(tables, encoding="utf-8")
    slopes = {name: slopes_of(FACTORS[name], found) for name, found in measured.items()}
    output.with_suffix(".svg").write_text(figure(measured, slopes), encoding="utf-8")
    kept = json.dumps({"about": about, "measured": measured}, indent=1)
    output.with_suffix(".json").write_text(kept + "\n", encoding="utf-8")
    return tables


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two points a factor, about a minute")
    parser.add_argument("--factors", default=",".join(FACTORS), help="some of: %(default)s")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the table; figure and JSON go beside it")
    parser.add_argument("--redraw", action="store_true", help="table and figure from the JSON of an earlier run")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measures, or draws again what was measured."""
    options = arguments()
    if options.serve:
        serve(FACTORS[options.serve[0]], [int(value) for value in options.serve[1:]])
        return
    names = options.factors.split(",")
    unknown = set(names) - set(FACTORS)
    if unknown:
        raise SystemExit(f"There is no factor {', '.join(sorted(unknown))}; choose from {', '.join(FACTORS)}.")
    if options.redraw:
        kept = json.loads(options.output.with_suffix(".json").read_text(encoding="utf-8"))
        measured, about = kept["measured"], kept["about"]
    else:
        start = time.perf_counter()
        measured = {
            name: run(FACTORS[name], FACTORS[name].quick_values if options.quick else FACTORS[name].values)
            for name in names
        }
        about = describe(measured, options.quick)
        print(f"measured in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(write(measured, about, options.output), end="")


if __name__ == "__main__":
    main()
