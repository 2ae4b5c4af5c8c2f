"""How long ranks wait for one another when each holds whole answers, and when eight share one: `python
benchmarks/lockstep.py`.

Counted, not run: mini-batches of the 32B recipe with made-up lengths are dealt out and packed by the code that trains.
A micro-batch's cost is its operations; all ranks wait for the dearest of each round, since FSDP2 gathers every layer
for all of them at once. "busy" is the part of their time in which ranks compute. Ranks that share rows can have
micro-batches so many times as long, or shorter ones, which even out more and move the weights more often: "moving" is
the time in which the plan's network moves them, over the time in which ranks compute. Above 100 % they wait for it.
"""

from __future__ import annotations

import argparse
import random
from itertools import zip_longest
from pathlib import Path
from statistics import mean

from negaware.config import load_config
from negaware.planning.cost import FLASH_BACKWARD, moved_bytes
from negaware.planning.setting import Machine, Setting, setting_of
from negaware.training.pack import Answer, Row, answers_per_row, divided, micro_batches, rows_of
from negaware.types import Completion, Span

ROOT = Path(__file__).parents[1]
SPLIT = 8
"""Ranks that share a row, as the paper's run does."""
LENGTHS = {"answers of about 3,000 tokens": 2_500, "of about 6,000": 6_000, "of about 10,000": 13_000}
"""Medians of the log-normal lengths (σ = 0.8 over all questions) from which answers are drawn, cut at the limit."""


def main() -> None:
    parser = argparse.ArgumentParser(description="How long ranks wait for one another.")
    parser.add_argument("--ranks", type=int, default=128)
    parser.add_argument("--mini-batches", type=int, default=8, help="how many are averaged (default 8)")
    options = parser.parse_args()
    if options.ranks < SPLIT or options.ranks % SPLIT:
        parser.error(f"--ranks is {options.ranks}; give a multiple of {SPLIT}")
    model = ["--model", str(ROOT / "configs/models/Qwen2.5-32B")]
    setting = setting_of(load_config(ROOT / "configs/paper/nft_32b.yaml", model), options.ranks, "cuda")
    longer = (8, 4, 2, 1)
    shared = " | ".join(f"{SPLIT} ranks a row, micro-batches × {times}" for times in longer)
    print(f"| {options.ranks} ranks: busy / moving | mean length | at the limit | a row a rank | {shared} |")
    print(f"|{'---|' * (4 + len(longer))}")
    for title, median in LENGTHS.items():
        drawn = [mini_batch(setting, median, seed) for seed in range(options.mini_batches)]
        lengths = [answer.num_tokens for answers in drawn for group in answers for answer in group]
        cut = mean(length == setting.answer_tokens for length in lengths)
        cells = [
            cell(setting, drawn, options.ranks, 1, 1),
            *(cell(setting, drawn, options.ranks, SPLIT, n) for n in longer),
        ]
        print(f"| {title} | {mean(lengths):,.0f} | {cut:.0%} | {' | '.join(cells)} |")


def mini_batch(setting: Setting, median: int, seed: int) -> list[list[Answer]]:
    """An optimizer step's questions of 100 to 300 tokens, with answers whose lengths have something in common."""
    choose = random.Random(seed)
    questions = []
    for _ in range(setting.questions // setting.optimizer_steps):
        prompt, scale = tuple(range(choose.randint(100, 300))), choose.lognormvariate(0, 0.5)
        drawn = [median * scale * choose.lognormvariate(0, 0.6) for _ in range(setting.completions)]
        lengths = [min(max(int(length), 50), setting.answer_tokens) for length in drawn]
        questions.append([Answer(prompt, Completion.elsewhere("stop", (Span(0, n),), 0), True, 0.5) for n in lengths])
    return questions


def cell(setting: Setting, drawn: list[list[list[Answer]]], ranks: int, split: int, times: int) -> str:
    """Both shares, meant over the mini-batches."""
    both = [busy_and_moving(setting, own, ranks, split, times) for own in drawn]
    return " / ".join(f"{mean(share):.0%}" for share in zip(*both, strict=True))


def busy_and_moving(
    setting: Setting, questions: list[list[Answer]], ranks: int, split: int, times: int
) -> tuple[float, float]:
    """The part of ranks' time in which they compute, `split` of them sharing micro-batches `times` as long; and the
    time in which weights and gradients are moved over that in which the slowest compute."""
    limit = setting.micro_batch_tokens * times
    rows = [row for own in questions for row in rows_of(own, answers_per_row(own, limit))]
    dealt = [micro_batches(share, limit) for share in divided(rows, ranks // split)]
    rounds = list(
        zip_longest(*([sum(cost(setting, row) for row in batch) for batch in own] for own in dealt), fillvalue=0.0)
    )
    slowest = [max(own) for own in rounds]
    machine = Machine()
    computing = sum(slowest) / split / (machine.operations * machine.efficiency)
    moving = len(rounds) * moved_bytes(setting) / machine.network
    busy = sum(map(sum, rounds)) / sum(most * len(own) for most, own in zip(slowest, rounds, strict=True))
    return busy, moving / computing


def cost(setting: Setting, row: Row) -> float:
    """Operations of a row's forward and backward pass with recomputed layers, head apart."""
    model, prompt = setting.model, len(row.answers[0].prompt_ids)
    pairs = prompt**2 / 2
    for answer in row.answers:
        pairs += answer.num_tokens * (prompt + answer.num_tokens / 2)
    attention = 4.0 * model.num_layers * model.attended_width * pairs
    return 4 * 2.0 * model.num_layers * model.layer_parameters * row.length + (2 + FLASH_BACKWARD) * attention


if __name__ == "__main__":
    main()
