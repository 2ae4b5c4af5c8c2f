"""Draws docs/figures/gradient_weight_all.svg: a token's gradient weight against its likelihood ratio R, all objectives.

Six panels, right and wrong answers at r̂ = 1/8, 1/2 and 7/8, both axes logarithmic: the weights themselves, by autograd.
Run it from the repository's root: `python benchmarks/gradient_weight_all.py`.
"""

import math

import torch
from gradient_weight import OUTPUT, text

from negaware.objectives import OBJECTIVES

RATIOS = torch.logspace(-2, 2, 129, base=2, dtype=torch.float64)
LOWEST, HIGHEST = 0.02, 20.0
ANSWERS = 8
FIGURE = OUTPUT.with_name("gradient_weight_all.svg")
WIDTH, HEIGHT, LEFT, TOP, GAP = 270, 230, 64, 40, 24
RATES = {"1/8": 1 / 8, "1/2": 1 / 2, "7/8": 7 / 8}

# (objective, colour, width, dashes): the wide ones lie below, for lines coincide in places.
LINES = [
    ("cispo", "#f3c9a5", 9, ""),
    ("grpo", "#eab1a8", 6, ""),
    ("dppo", "#c5dcb0", 8, ""),
    ("dr_grpo", "#5f8f2f", 4, ""),
    ("dapo", "#a0402c", 1.5, "5 4"),
    ("gspo", "#000000", 1.5, "2 4"),
    ("maxrl", "#8a6d00", 2.5, "8 3"),
    ("psr_nsr", "#7a2a8c", 2, ""),
    ("topr", "#c060c8", 2, "3 3"),
    ("rft", "#7fb8e6", 5, ""),
    ("signed", "#777777", 4, "10 5"),
    ("asymre", "#008080", 2, "6 2 1 2"),
    ("real", "#c9a400", 3.5, "1 3"),
    ("infonca", "#2f8f6f", 2.5, "12 3 2 3"),
    ("nft", "#0b5fa5", 2.5, ""),
]


def weights(name, rate, correct):
    """|∂loss/∂log π_θ| at each of RATIOS: of one answer of its group of eight, all of one token with π_old = 0.1; the
    others are at R = 1. A loss of whole groups is multiplied by eight: then it is divided by answers, as the others'.
    """
    ratios = torch.ones(len(RATIOS), ANSWERS, dtype=torch.float64)
    ratios[:, 0] = RATIOS
    number_right = round(rate * ANSWERS)
    right = [correct, *(index < number_right - correct for index in range(ANSWERS - 1))]
    old = torch.full((ratios.numel(), 1), math.log(0.1), dtype=torch.float64)
    logprobs = (old + ratios.view(-1, 1).log()).requires_grad_()
    group = torch.arange(len(RATIOS)).repeat_interleave(ANSWERS)
    verdicts = torch.tensor(right * len(RATIOS))
    objective = OBJECTIVES[name]
    loss = objective(logprobs, old, torch.ones_like(old), verdicts, torch.full_like(old[:, 0], rate), group)
    (found,) = torch.autograd.grad(loss.sum(), logprobs)
    return (found[::ANSWERS, 0].abs() * (ANSWERS if objective.sees_groups else 1)).tolist()


def panel(left, top, rate, correct):
    def at(ratio, weight):
        height = math.log(weight / LOWEST) / math.log(HIGHEST / LOWEST)
        return left + (math.log2(ratio) + 2) / 4 * WIDTH, top + HEIGHT * (1 - height)

    parts = []
    for ratio in (0.25, 0.5, 1, 2, 4):
        x, _ = at(ratio, 1)
        parts.append(f'<path d="M{x:g} {top}v{HEIGHT}" stroke="#ddd"/>')
        parts += [text(x, top + HEIGHT + 17, f"{ratio:g}")] if not correct else []
    for weight in (0.1, 1, 10):
        _, y = at(1, weight)
        parts.append(f'<path d="M{left} {y:g}h{WIDTH}" stroke="#ddd"/>')
        parts += [text(left - 8, y + 4, f"{weight:g}", 12, "end")] if left == LEFT else []
    for name, colour, width, dashes in LINES:
        path, pen = "", "M"
        for ratio, weight in zip(RATIOS.tolist(), weights(name, rate, correct), strict=True):
            if weight < LOWEST:  # 0, as a rule
                pen = "M"
                continue
            x, y = at(ratio, weight)
            path, pen = f"{path}{pen}{x:.1f} {y:.1f}", "L"
        if path:
            parts.append(
                f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'
            )
    return [*parts, f'<rect x="{left}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#555"/>']


def drawing():
    """The whole picture as SVG."""
    width, below = LEFT + 3 * WIDTH + 2 * GAP + 50, TOP + HEIGHT + GAP
    height = below + HEIGHT + 150
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        text(18, below, "gradient weight", 13, extra=f'transform="rotate(-90 18 {below})"'),
        text(LEFT + 1.5 * WIDTH + GAP, below + HEIGHT + 38, "likelihood ratio R", 13),
    ]
    for column, (words, rate) in enumerate(RATES.items()):
        left = LEFT + column * (WIDTH + GAP)
        parts += [text(left + WIDTH / 2, TOP - 12, f"r̂ = {words}", 14)]
        parts += panel(left, TOP, rate, True) + panel(left, below, rate, False)
    for words, top in (("right answers", TOP), ("wrong answers", below)):
        x, y = LEFT + 3 * WIDTH + 2 * GAP + 22, top + HEIGHT / 2
        parts.append(text(x, y, words, 14, extra=f'transform="rotate(90 {x} {y})"'))
    for index, (name, colour, thickness, dashes) in enumerate(LINES):
        x, y = LEFT + 175 * (index % 5), below + HEIGHT + 68 + 24 * (index // 5)
        parts.append(
            f'<path d="M{x} {y}h44" stroke="{colour}" stroke-width="{thickness}" stroke-dasharray="{dashes}"/>'
        )
        parts.append(text(x + 52, y + 4, name, 12, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    FIGURE.write_text(drawing(), encoding="utf-8")
    print(f"wrote {FIGURE.name}")


if __name__ == "__main__":
    main()
