"""Decoders of the Llama family (SmolLM2, Qwen2.5, Qwen3, Mistral) run as few large operations on the CPU.

A `FusedDecoder` computes what a transformers model computes, from the very parameters of that model: projections of the
same input are one matrix product, the residual stream stays float32 while what is multiplied is the compute dtype, and
the backward pass computes norms and activations again instead of keeping them. Which keys a query sees is up to the
caller: attention comes in as a function.

N tokens, hidden width D, H heads of width W, Hkv of them with keys and values; S = H + 2·Hkv.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from negaware.models.cpu.kernels import CompiledKernels, Kernels, kernels_for
from negaware.models.cpu.products import HAS_BFLOAT16_PRODUCTS
from negaware.models.cpu.rows import RowDecoder
from negaware.models.cpu.shared_rows import SharedRows, attend
from negaware.models.lora import adapter_of, merged_weight, plain

if TYPE_CHECKING:
    from negaware.models.decoder import Rows

Attend = Callable[[int, Tensor], Tensor]
"""Attention [N, H, W] of a layer, by its index, from its tokens' queries, keys and values side by side [N, S, W]."""


class FusedDecoder:
    """A model's decoder over its own parameters, as they were at the last `refresh`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.decoder: Any = model.get_decoder()
        self.layers = [_Layer(layer) for layer in self.decoder.layers]
        self.norm = _Norm(self.decoder.norm)
        attention = self.decoder.layers[0].self_attn
        self.num_key_heads, self.head_width = self.layers[0].num_key_heads, attention.head_dim
        self.queries_per_key = self.layers[0].num_heads // self.num_key_heads
        self.scale: float = attention.scaling
        self.recomputes = False
        """Whether a backward pass computes each layer again from its input, the only thing kept of it."""

    shares_questions = True

    @property
    def kind(self) -> str:
        """See `models/decoder.py`, as the next four."""
        return "compiled" if isinstance(self.kernels, CompiledKernels) else "torch"

    def hidden_states(self, rows: Rows) -> Tensor:
        """[R·T, D] of the tokens of rows."""
        places = SharedRows(rows.tokens.shape[1], rows.question_lengths, rows.answer_lengths)
        return self(rows.tokens.flatten(), rows.positions.flatten(), self.attention_within(places))

    def make_rows(self) -> RowDecoder:
        """The rows of a batch that is sampled."""
        return RowDecoder(self)

    def recompute_activations(self) -> None:
        """A backward pass computes each layer again from its input."""
        self.recomputes = True

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype: the parameters' own."""
        dtype: torch.dtype = self.decoder.embed_tokens.weight.dtype
        return dtype

    @property
    def kernels(self) -> Kernels:
        """What computes between the matrix products."""
        return kernels_for(self.dtype, self.head_width, self.queries_per_key)

    def refresh(self) -> None:
        """To be called before use whenever parameters may have changed: what was made from them is forgotten."""
        for layer in self.layers:
            for product in (layer.inputs, layer.output, layer.gates, layer.down):
                product.joined = product.packed = None

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The last hidden states [N, D], in the compute dtype, of tokens [N] at positions [N].

        With gradients enabled it runs as training does; otherwise on weights rearranged for sampling.
        """
        stream = self.decoder.embed_tokens(tokens).float()
        cosines, sines = self.decoder.rotary_emb(stream[None], positions[None])
        half = cosines.shape[-1] // 2
        rotation = cosines[0, :, None, :half], sines[0, :, None, :half]
        kernels, added = self.kernels, None
        if torch.is_grad_enabled():
            for index, layer in enumerate(self.layers):
                train: Callable[..., Tensor] = layer.train
                if self.recomputes:
                    train = partial(checkpoint, layer.train, use_reentrant=False, preserve_rng_state=False)
                stream = train(stream, rotation, partial(attend, index), kernels)
            normed: Tensor = _Normed.apply(stream, self.norm.weight, self.norm.epsilon, kernels)
            return normed
        for index, layer in enumerate(self.layers):
            added = layer.sample(stream, added, rotation, partial(attend, index), kernels)
        return kernels.add_normed(stream, added, self.norm.weight, self.norm.epsilon)

    def attention_within(self, rows: SharedRows) -> Attend:
        """Attention of rows that hold questions and answers side by side."""
        return lambda _, states: attend(states, rows, self.num_key_heads, self.scale)


class _Layer:
    """Norm, attention, norm, gated MLP; each half is added to the stream [N, D]."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.num_heads = plain(attention.q_proj).out_features // attention.head_dim
        self.num_key_heads = plain(attention.k_proj).out_features // attention.head_dim
        self.attention_norm, self.mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.head_norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self.inputs = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = _Product(attention.o_proj)
        self.gates = _Product(mlp.gate_proj, mlp.up_proj)
        self.down = _Product(mlp.down_proj)

    def train(
        self,
        stream: Tensor,
        rotation: tuple[Tensor, Tensor],
        attend: Callable[[Tensor], Tensor],
        kernels: Kernels,
    ) -> Tensor:
        """For a backward pass."""
        states = self._by_head(_NormedProduct.of(stream, self.attention_norm, self.inputs, kernels))
        attended = attend(_Rotated.apply(states, *rotation, self.num_heads + self.num_key_heads, kernels))
        stream = _Linear.of(attended.flatten(1), self.output).float().add_(stream)
        gates = _NormedProduct.of(stream, self.mlp_norm, self.gates, kernels)
        return _AddGated.of(stream, gates, self.down, kernels)

    def sample(
        self,
        stream: Tensor,
        added: Tensor | None,
        rotation: tuple[Tensor, Tensor],
        attend: Callable[[Tensor], Tensor],
        kernels: Kernels,
    ) -> Tensor:
        """Without one. Each half's output joins the stream, in place, where the next half begins: the last is returned.

        `added` is what the layer before returned.
        """
        norms = self.attention_norm, self.mlp_norm
        states = self._by_head(self.inputs(kernels.add_normed(stream, added, norms[0].weight, norms[0].epsilon)))
        attended = attend(kernels.rotate(states, *rotation, self.num_heads + self.num_key_heads))
        added = self.output(attended.flatten(1))
        gates = self.gates(kernels.add_normed(stream, added, norms[1].weight, norms[1].epsilon))
        return self.down(kernels.gated(gates))

    def _by_head(self, states: Tensor) -> Tensor:
        """Queries, keys and values [N, S, W], the former two normed where the model norms them."""
        sizes = [self.num_heads, self.num_key_heads, self.num_key_heads]
        states = states.unflatten(-1, (sum(sizes), -1))
        if not self.head_norms:
            return states
        *parts, values = states.split(sizes, dim=1)
        normed = [norm(part).to(states.dtype) for norm, part in zip(self.head_norms, parts, strict=True)]
        return torch.cat([*normed, values], dim=1)


class _Norm:
    """An RMS norm's weight and ε."""

    def __init__(self, module: Any) -> None:
        self.module, self.epsilon = module, module.variance_epsilon

    @property
    def weight(self) -> Tensor:
        """[D]."""
        weight: Tensor = self.module.weight
        return weight


class _Product:
    """Linear layers of the same input as one matrix product, adapters merged into the weights.

    `joined` is their weights and biases for training; `packed` the same for sampling, the weights laid out as the CPU's
    products read them (otherwise each product lays them out first). Only what was last needed is held.
    """

    def __init__(self, *layers: nn.Module) -> None:
        self.layers: list[nn.Linear] = [plain(layer) for layer in layers]
        self.adapted = layers
        self.joined: tuple[Tensor, Tensor | None] | None = None
        self.packed: tuple[Tensor, Tensor | None] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.layers[0].weight.dtype

    @property
    def is_frozen(self) -> bool:
        """Whether adapters are trained in the weights' stead."""
        return not self.layers[0].weight.requires_grad

    def trained(self) -> list[Tensor]:
        """The parameters, in the order of `gradients`: weights, then biases; or each adapter's A and B."""
        if not self.is_frozen:
            return [layer.weight for layer in self.layers] + self._biases()
        adapters = [adapter for layer in self.adapted if (adapter := adapter_of(layer))]
        return [matrix for adapter in adapters for matrix in (adapter.down, adapter.up)]

    def _biases(self) -> list[Tensor]:
        return [layer.bias for layer in self.layers if layer.bias is not None]

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """[O, D] and [O] of all layers, without gradients."""
        if self.joined is None:
            biases = self._biases()
            with torch.inference_mode(False), torch.no_grad():  # training may keep them for its backward pass
                weights = [merged_weight(layer) for layer in self.adapted]
                self.joined = _joined(weights), _joined(biases) if biases else None
        return self.joined

    def __call__(self, inputs: Tensor) -> Tensor:
        """All layers' outputs [N, O] of inputs [N, D], without gradients."""
        if not (HAS_BFLOAT16_PRODUCTS and self.dtype == torch.bfloat16):
            return functional.linear(inputs, *self.weight_and_bias())
        if self.packed is None:
            weight, bias = self.weight_and_bias()
            self.packed, self.joined = (torch.ops.mkldnn._reorder_linear_weight(weight), bias), None
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, *self.packed, "none", [], "")
        return product

    def gradients(self, upstream: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
        """The trained parameters' gradients, from the outputs' gradient [N, O] and the inputs [N, D]."""
        sizes = [layer.out_features for layer in self.layers]
        if not self.is_frozen:
            grad_weights = (upstream.T @ inputs).split(sizes)
            return grad_weights + (upstream.sum(0).split(sizes) if self._biases() else ())
        found: list[Tensor] = []
        for layer, grad_outputs in zip(self.adapted, upstream.split(sizes, dim=1), strict=True):
            if adapter := adapter_of(layer):
                scaled = grad_outputs * adapter.scale
                found += (scaled @ adapter.up).T @ inputs, scaled.T @ (inputs @ adapter.down.T)
        return tuple(found)


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parameters)) if len(parameters) > 1 else parameters[0].detach()


class _NormedProduct(torch.autograd.Function):
    """A product of the normed stream. Kept for the backward pass: the stream."""

    @classmethod
    def of(cls, stream: Tensor, norm: _Norm, product: _Product, kernels: Kernels) -> Tensor:
        """The product's outputs [N, O]."""
        outputs: Tensor = cls.apply(stream, norm, product, kernels, norm.weight, *product.trained())
        return outputs

    @staticmethod
    def forward(
        ctx: Any,
        stream: Tensor,
        norm: _Norm,
        product: _Product,
        kernels: Kernels,
        norm_weight: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        weight, bias = product.weight_and_bias()
        ctx.save_for_backward(stream, weight, norm_weight)
        ctx.product, ctx.epsilon, ctx.kernels = product, norm.epsilon, kernels
        return functional.linear(kernels.add_normed(stream, None, norm_weight, norm.epsilon), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        stream, weight, norm_weight = ctx.saved_tensors
        upstream = gradients[0]
        normed = ctx.kernels.add_normed(stream, None, norm_weight, ctx.epsilon)
        grad_parameters = ctx.product.gradients(upstream, normed)
        grad_stream, grad_norm_weight = ctx.kernels.norm_gradients(upstream @ weight, stream, norm_weight, ctx.epsilon)
        return grad_stream, None, None, None, grad_norm_weight, *grad_parameters


class _Linear(torch.autograd.Function):
    """A product. Kept for the backward pass: its inputs."""

    @classmethod
    def of(cls, inputs: Tensor, product: _Product) -> Tensor:
        """The outputs [N, O] of inputs [N, D]."""
        outputs: Tensor = cls.apply(inputs, product, *product.trained())
        return outputs

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, product: _Product, *trained: Tensor) -> Tensor:
        weight, bias = product.weight_and_bias()
        ctx.save_for_backward(inputs, weight)
        ctx.product = product
        return functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        upstream = gradients[0]
        return upstream @ weight, None, *ctx.product.gradients(upstream, inputs)


class _Normed(torch.autograd.Function):
    """The stream's norm, in the compute dtype. Kept for the backward pass: the stream."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, norm_weight: Tensor, epsilon: float, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(stream, norm_weight)
        ctx.epsilon, ctx.kernels = epsilon, kernels
        return kernels.add_normed(stream, None, norm_weight, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        stream, norm_weight = ctx.saved_tensors
        upstream = gradients[0].contiguous()
        return *ctx.kernels.norm_gradients(upstream, stream, norm_weight, ctx.epsilon), None, None


class _Rotated(torch.autograd.Function):
    """Rotary positions for the first heads of [N, S, W], by cosines and sines [N, 1, W/2]; the others stay."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int, kernels: Kernels) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.num_rotated, ctx.kernels = num_rotated, kernels
        return kernels.rotate(states, cosines, sines, num_rotated)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        back = ctx.kernels.rotate(gradients[0].contiguous(), cosines, -sines, ctx.num_rotated)
        return back, None, None, None, None


class _AddGated(torch.autograd.Function):
    """stream + (silu(gate) · up) Wᵀ of gates [N, 2·I]. Kept for the backward pass: the gates."""

    @classmethod
    def of(cls, stream: Tensor, gates: Tensor, product: _Product, kernels: Kernels) -> Tensor:
        """The stream [N, D] with what the product adds."""
        added: Tensor = cls.apply(stream, gates, product, kernels, *product.trained())
        return added

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, gates: Tensor, product: _Product, kernels: Kernels, *trained: Tensor
    ) -> Tensor:
        weight, _ = product.weight_and_bias()
        ctx.save_for_backward(gates, weight)
        ctx.product, ctx.kernels = product, kernels
        return functional.linear(kernels.gated(gates), weight).float().add_(stream)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gates, weight = ctx.saved_tensors
        upstream = gradients[0].to(weight.dtype)
        grad_trained = ctx.product.gradients(upstream, ctx.kernels.gated(gates))
        return gradients[0], ctx.kernels.gated_gradients(upstream @ weight, gates), None, None, *grad_trained
