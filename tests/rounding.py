"""What rounding allows: how far a result in floating point may lie from the exact one, on any processor.

After Higham, Accuracy and Stability of Numerical Algorithms (2002), chapters 2 and 3: one operation errs by at most the
unit u = ε/2 of its result, n of them on one another by γ(n) = nu/(1 − nu), a sum of n products by γ(n) · Σ|products|
in whatever order it is added up and with fused operations or without. A bound from these holds wherever arithmetic is
IEEE's; one that was read off a machine holds there. Exact results are float64's, whose own error is 2²⁹ times smaller.

A whole model has too many operations for a formula: `exactly` measures how far their errors carry the result.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import get_decompositions
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

UNIT = torch.finfo(torch.float32).eps / 2
EXPONENTIAL = 1e-6
"""The relative error that an exponential may have: kernels.c's promises this, a library's is better."""


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


@dataclass(frozen=True)
class Exact:
    """A result in float64, and the norm of the difference that rounding may make to it."""

    value: Tensor
    error: float

    def assert_near(self, found: Tensor | Sequence[float] | float, times: float = 1) -> None:
        """`found` is this but for rounding, or for so many times what rounding makes of one such result."""
        found = torch.as_tensor(found, dtype=torch.float64, device="cpu").detach()
        assert found.shape == self.value.shape
        distance, allowed = float((found - self.value).norm()), times * self.error
        assert distance <= allowed, f"{distance:.3g} from the exact result, where rounding allows {allowed:.3g}"

    def mean_difference(self) -> float:
        """As much as the mean |difference| of two that are this but for rounding can be: 2 ‖error‖ / √n."""
        return 2 * self.error / math.sqrt(self.value.numel())


def exactly(compute: Callable[[], Sequence[Tensor]], unit: float = UNIT, trials: int = 2) -> list[Exact]:
    """What `compute`, given a model in float64, results in, and how far rounding to `unit` may carry each result.

    It runs again `trials` times, and there every operation's result is off by as much as rounding may make of it, up or
    down by chance. To the first order a result's error is Σ (its derivative by an operation's result) · (that
    operation's error), and the trials' root mean square is what it comes to where every error is as large as it can be
    on any processor, and their signs are by chance. Real errors are smaller, so three times that is allowed: after
    Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis (2019), whose assumption this is. Two
    trials do for a result of many numbers, whose norm varies little; of a single one they come to under a third of that
    one time in ten, where real errors are 4 %. They are seeded, so a bound is the same in every run.
    """
    with _float64():
        values = [value.detach().clone() for value in compute()]
    squares = [0.0] * len(values)
    for seed in range(trials):
        with _float64(), _Rounded(unit, seed):
            again = compute()
        for index, (other, value) in enumerate(zip(again, values, strict=True)):
            squares[index] += float((other.detach() - value).norm()) ** 2 / trials
    return [Exact(value, 3 * math.sqrt(square)) for value, square in zip(values, squares, strict=True)]


def exact_logprobs(
    model: nn.Module,
    answers: Sequence[tuple[Sequence[int], Sequence[int]]],
    temperature: float = 1.0,
    unit: float = UNIT,
    restrict: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> Exact:
    """The log-probabilities of all answers' tokens, flat, each answer behind its prompt in a row of its own.

    They are those of the distribution that `restrict` makes of tempered logits [N, V].
    """
    model = copy.deepcopy(model).cpu().double()
    sequences = [torch.tensor([*prompt, *answer]) for prompt, answer in answers]
    tokens = nn.utils.rnn.pad_sequence(sequences, batch_first=True)

    def compute() -> list[Tensor]:
        with torch.no_grad():
            logits = model(tokens, use_cache=False).logits[:, :-1]
            restricted = restrict((logits / temperature).flatten(0, 1)).unflatten(0, logits.shape[:2])
            found = restricted.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
        rows = zip(found, answers, strict=True)
        return [torch.cat([row[len(prompt) - 1 :][: len(answer)] for row, (prompt, answer) in rows])]

    return exactly(compute, unit)[0]


@contextmanager
def _float64() -> Iterator[None]:
    """Also where a model or a loss asks for float32; and attention by its formula, an operation at a time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            torch.autograd.set_multithreading_enabled(False),  # modes are a thread's own
            sdpa_kernel(SDPBackend.MATH),
            _AsksForFloat64(),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


class _AsksForFloat64(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.float:
            function = Tensor.double
        kwargs = kwargs or {}
        if kwargs.get("dtype") is torch.float32:
            kwargs = kwargs | {"dtype": torch.float64}
        return function(*[torch.float64 if each is torch.float32 else each for each in args], **kwargs)


_aten = torch.ops.aten
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.mv, _aten.dot}
_SUMS = {_aten.sum, _aten.mean, _aten.cumsum, _aten.embedding_dense_backward, _aten.linalg_vector_norm}
_EXPONENTIALS = {_aten.exp, _aten.sigmoid, _aten.tanh, _aten.silu}
_SOFTMAX = [_aten._softmax, _aten._softmax_backward_data, _aten._log_softmax, _aten._log_softmax_backward_data]
_PARTS = get_decompositions([*_SOFTMAX, _aten.native_layer_norm, _aten.native_layer_norm_backward])


class _Rounded(TorchDispatchMode):
    """Every operation's float64 result is off by as much as rounding may make of it, with a sign by chance.

    That is two units, twice what IEEE's own operations and as much as a library's functions err by; exponentials more;
    and a sum of n terms is off by √n float32 units of Σ|terms| more, which n roundings of sums as large come to, in any
    order, with signs by chance. What consists of several operations is taken one by one.
    """

    def __init__(self, unit: float, seed: int) -> None:
        super().__init__()
        self.units, self.chance = 2 * unit, random.Random(seed)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _PARTS:
            with self:
                return _PARTS[function](*args, **kwargs)
        kind, makes = _kind_and_what_it_makes(function)
        result, sizes = function(*args, **kwargs), None
        if (kind in _PRODUCTS or kind in _SUMS) and _is_float(result):
            sizes = function(*tree_map(lambda each: each.abs() if _is_float(each) else each, args), **kwargs).abs()
            terms = args[-2].shape[-1] if kind in _PRODUCTS else max(1, args[0].numel() // max(1, result.numel()))
            sizes.mul_(math.sqrt(terms) * UNIT)
        units = max(self.units, EXPONENTIAL) if kind in _EXPONENTIALS else self.units
        for makes_one, tensor in zip(makes, _tensors(result), strict=False):
            if makes_one and _is_float(tensor) and (size := tensor.numel()):
                signs, factors = _signs_and_factors(1 << (size + 2**18).bit_length(), units)
                begin = self.chance.randrange(len(signs) - size)  # for drawing signs takes longer than all else
                tensor.mul_(factors[begin : begin + size].view(tensor.shape))
                if sizes is not None:
                    tensor.addcmul_(signs[begin : begin + size].view(tensor.shape), sizes)
        return result


@cache
def _kind_and_what_it_makes(function: Any) -> tuple[Any, list[bool]]:
    """What is done, and of each thing returned whether it is made there rather than a view of another."""
    infos = [returned.alias_info for returned in function._schema.returns]
    return function.overloadpacket, [info is None or info.is_write for info in infos]


@cache
def _signs_and_factors(number: int, units: float) -> tuple[Tensor, Tensor]:
    """±1 by chance, drawn once, and 1 ± units, by which a result is multiplied to be off by so many."""
    signs = torch.randint(2, (number,), generator=torch.Generator().manual_seed(number)).double().mul_(2).sub_(1)
    return signs, 1 + units * signs


def _tensors(result: Any) -> Sequence[Any]:
    return result if isinstance(result, tuple) else [result]


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
