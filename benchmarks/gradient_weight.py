"""Draws docs/figures/gradient_weight.svg: a token's gradient weight against its likelihood ratio R.

The weights come from the objectives themselves, by autograd. Run it from the repository's root:
`python benchmarks/gradient_weight.py`. The drawing is plain SVG written here, so that it needs nothing but torch.
"""

import math
from pathlib import Path

import torch

from negaware.objectives import dapo_loss, grpo_loss, nft_loss

OUTPUT = Path(__file__).parents[1] / "docs" / "figures" / "gradient_weight.svg"
RATIOS = torch.linspace(0.0, 2.0, 201, dtype=torch.float64).clamp(min=1e-4)
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP, MAX_WEIGHT = 340, 250, 60, 36, 60, 3.0

# (label, loss, options, pass rate, colour, width, dashes): lines coincide in places, so the wide ones lie below and
# dashes differ; they part without colour too.
LINES = [
    ("GRPO, clip 0.2", grpo_loss, {}, 0.5, "#eab1a8", 8, ""),
    ("DAPO, clip 0.2 and 0.28", dapo_loss, {}, 0.5, "#8a6d00", 4, "5 4"),
    ("NFT, ε = 1, r̂ = 0.25", nft_loss, {}, 0.25, "#0b5fa5", 2, "10 3"),
    ("NFT, ε = 1, r̂ = 0.5", nft_loss, {}, 0.5, "#0b5fa5", 2, ""),
    ("NFT, ε = 1, r̂ = 0.75", nft_loss, {}, 0.75, "#0b5fa5", 2, "2 3"),
    ("NFT, ε = 0.1, r̂ = 0.5", nft_loss, {"epsilon": 0.1}, 0.5, "#7a2a8c", 2, "12 3 2 3"),
]


def gradient_weights(loss, options, pass_rate, correct):
    """|∂loss/∂log π_θ| at each of RATIOS over that at R = 1, for a right or a wrong answer."""
    old = torch.full((1, len(RATIOS)), -1.0, dtype=torch.float64)
    logprobs = (old + RATIOS.log()).requires_grad_()
    rate = torch.tensor([pass_rate], dtype=torch.float64)
    value = loss(logprobs, old, torch.ones_like(old), torch.tensor([correct]), rate, **options)
    (weights,) = torch.autograd.grad(value.sum(), logprobs)
    return (weights[0] / weights[0, RATIOS.sub(1).abs().argmin()]).tolist()


def text(x, y, words, size=12, anchor="middle", extra=""):
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" {extra}>{words}</text>'


def panel(left, title, correct):
    """Axes, grid and lines of one side (right or wrong answers)."""

    def at(ratio, weight):
        return left + ratio / 2 * PANEL_WIDTH, TOP + PANEL_HEIGHT * (1 - weight / MAX_WEIGHT)

    bottom = TOP + PANEL_HEIGHT
    parts = [text(left + PANEL_WIDTH / 2, TOP - 12, title, 14)]
    for tick in (0, 0.5, 1, 1.5, 2):
        x, _ = at(tick, 0)
        parts += [f'<path d="M{x:g} {TOP}V{bottom}" stroke="#ddd"/>', text(x, bottom + 18, f"{tick:g}")]
    for tick in range(4):
        _, y = at(0, tick)
        parts += [f'<path d="M{left} {y:g}h{PANEL_WIDTH}" stroke="#ddd"/>', text(left - 10, y + 4, str(tick))]
    for _, loss, options, pass_rate, colour, width, dashes in LINES:
        weights = gradient_weights(loss, options, pass_rate, correct)
        points = [at(ratio, weight) for ratio, weight in zip(RATIOS.tolist(), weights, strict=True)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points if y >= TOP - 1)
        style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
        parts.append(f'<path d="{path}" {style}/>')
    parts.append(
        f'<rect x="{left}" y="{TOP}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="#555"/>'
    )
    return [*parts, text(left + PANEL_WIDTH / 2, bottom + 38, "likelihood ratio R", 13)]


def legend(top):
    """Three entries a row, below the panels."""
    parts = []
    for index, (label, *_, colour, width, dashes) in enumerate(LINES):
        x, y = LEFT + 250 * (index % 3), top + 22 * math.floor(index / 3)
        style = f'stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"'
        parts += [f'<path d="M{x} {y}h44" {style}/>', text(x + 52, y + 4, label, 12, "start")]
    return parts


def main():
    width, height = LEFT + 2 * PANEL_WIDTH + GAP + 20, TOP + PANEL_HEIGHT + 104
    middle = TOP + PANEL_HEIGHT / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#222">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        text(18, middle, "gradient weight, R = 1 being 1", 13, extra=f'transform="rotate(-90 18 {middle:g})"'),
        *panel(LEFT, "right answers", True),
        *panel(LEFT + PANEL_WIDTH + GAP, "wrong answers", False),
        *legend(TOP + PANEL_HEIGHT + 68),
        "</svg>",
    ]
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text("\n".join(parts) + "\n", encoding="utf-8")
    print(f"wrote {OUTPUT.name}")


if __name__ == "__main__":
    main()
