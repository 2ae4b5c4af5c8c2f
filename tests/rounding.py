"""What rounding allows: how far a result in floating point may lie from the exact one, on any processor.

After Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 2 and 3: one operation errs by at most the
unit u = ε/2 of its result, n of them on one another by γ(n) = nu/(1 − nu), a sum of n products by γ(n) · Σ|products|
in whatever order it is added up and with fused operations or without. A bound from these holds wherever arithmetic is
IEEE's; one that was read off a machine holds there. Exact results are float64's, whose own error is 2²⁹ times smaller.
"""

import torch
from torch import Tensor

UNIT = torch.finfo(torch.float32).eps / 2


def gamma(operations: float) -> float:
    """The relative error that so many float32 operations on one another can make."""
    return operations * UNIT / (1 - operations * UNIT)


def assert_within(found: Tensor, exact: Tensor, error: Tensor | float) -> None:
    """`found` is `exact` (float64) but for `error`, and for what rounding that to its own dtype adds."""
    found, exact = found.detach(), exact.detach()
    assert found.shape == exact.shape
    assert exact.dtype == torch.float64
    own = torch.finfo(found.dtype)
    error = torch.as_tensor(error, dtype=torch.float64).detach()
    allowed = error + own.eps / 2 * (exact.abs() + error) + own.tiny
    used = ((found.double() - exact).abs() / allowed).nan_to_num(nan=torch.inf)
    worst = int(used.argmax())
    assert used.max() <= 1, (
        f"{found.flatten()[worst]} is {used.max():.3g} times as far from {exact.flatten()[worst]} as rounding allows"
    )
