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
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from negaware.models.attention import NAME as OWN_ATTENTION
from negaware.models.attention import has_full_attention
from negaware.models.products import HAS_BFLOAT16_PRODUCTS
from negaware.models.shared_rows import SharedRows, attend

Attend = Callable[[int, Tensor], Tensor]
"""Attention [N, H, W] of a layer, by its index, from its tokens' queries, keys and values side by side [N, S, W]; these
are float32 where no gradient is wanted."""

KINDS = ("sdpa", OWN_ATTENTION)
"""Kinds of attention that it may stand in for; a model that was given another one keeps it."""
LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
HEAD_NORMS = {"q_norm", "k_norm"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

_decoders: WeakKeyDictionary[PreTrainedModel, FusedDecoder | None] = WeakKeyDictionary()


def fused_decoder_of(model: PreTrainedModel) -> FusedDecoder | None:
    """The model's fused decoder, one for all who ask; None on other devices or if the model isn't of the family.

    Whether it is, is found in its parts and checked once against its own forward.
    """
    if model not in _decoders:
        _decoders[model] = _checked(model) if _is_llama_like(model) else None
    return _decoders[model]


class FusedDecoder:
    """A model's decoder over its own parameters, which may change between calls."""

    def __init__(self, model: PreTrainedModel) -> None:
        decoder: Any = model.get_decoder()
        self.embeddings, self.rotary = decoder.embed_tokens, decoder.rotary_emb
        self.layers = [_Layer(layer) for layer in decoder.layers]
        self.norm = _Norm(decoder.norm)
        attention = decoder.layers[0].self_attn
        self.num_key_heads, self.head_width = self.layers[0].num_key_heads, attention.head_dim
        self.scale: float = attention.scaling

    def __call__(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """The last hidden states [N, D], in the compute dtype, of tokens [N] at positions [N]."""
        stream = self.embeddings(tokens).float()
        rotation = [part[0, :, None, : part.shape[-1] // 2] for part in self.rotary(stream[None], positions[None])]
        for index, layer in enumerate(self.layers):
            stream = layer(stream, rotation, partial(attend, index))
        return self.norm(stream).to(self.embeddings.weight.dtype)

    def attention_within(self, rows: SharedRows) -> Attend:
        """Attention of rows that hold questions and answers side by side."""
        return lambda _, states: attend(states, rows, self.num_key_heads, self.scale)


class _Layer:
    """Norm, attention, norm, gated MLP; each half is added to the stream."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        width = attention.head_dim
        self.num_heads = attention.q_proj.out_features // width
        self.num_key_heads = attention.k_proj.out_features // width
        self.attention_norm, self.mlp_norm = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.head_norms = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        self.states = _Product(attention.q_proj, attention.k_proj, attention.v_proj)
        self.attended = _Product(attention.o_proj)
        self.gated = _Product(mlp.gate_proj, mlp.up_proj)
        self.down = _Product(mlp.down_proj)
        self.sizes = [self.num_heads, self.num_key_heads, self.num_key_heads]

    def __call__(self, stream: Tensor, rotation: Sequence[Tensor], attend: Callable[[Tensor], Tensor]) -> Tensor:
        states = self.states.of_normed(stream, self.attention_norm).unflatten(-1, (sum(self.sizes), -1))
        if self.head_norms:
            *normed, values = states.split(self.sizes, dim=1)
            normed = [norm(part) for norm, part in zip(self.head_norms, normed, strict=True)]
            states = torch.cat([*normed, values], dim=1)
        num_rotated = self.num_heads + self.num_key_heads
        if torch.is_grad_enabled():
            states = _Rotated.apply(states, *rotation, num_rotated)
        else:
            states = _rotated(states, rotation[0], rotation[1], num_rotated)
        stream = self.attended(attend(states).flatten(1).to(self.attended.dtype)).float().add_(stream)
        gates = self.gated.of_normed(stream, self.mlp_norm)
        if torch.is_grad_enabled():
            return _AddGated.apply(stream, gates, self.down.weights[0])
        return self.down(_gated(gates)).float().add_(stream)


class _Norm:
    """An RMS norm in float32."""

    def __init__(self, module: Any) -> None:
        self.weight, self.epsilon = module.weight, module.variance_epsilon

    def scale(self, stream: Tensor) -> Tensor:
        """What each token is divided by, inverted [N, 1]."""
        norms = torch.linalg.vector_norm(stream, dim=-1, keepdim=True)
        return torch.rsqrt(norms.square() / stream.shape[-1] + self.epsilon)

    def __call__(self, stream: Tensor) -> Tensor:
        return stream * self.scale(stream) * self.weight.float()


class _Product:
    """Linear layers of the same input as one matrix product. Their weights are joined again whenever they change."""

    def __init__(self, *layers: nn.Linear) -> None:
        self.weights: list[Tensor] = [layer.weight for layer in layers]
        self.biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.parameters = self.weights + self.biases
        self.joined: tuple[Tensor, Tensor | None] | None = None
        self.packed: Tensor | None = None
        self.state: list[tuple[int, int]] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        """The layers' outputs [N, O] of inputs [N, D], beside each other; a gradient only of a layer on its own."""
        weight, bias = self.weight_and_bias()
        if torch.is_grad_enabled():
            return functional.linear(inputs, *self.parameters)
        if not (HAS_BFLOAT16_PRODUCTS and weight.dtype == torch.bfloat16):
            return functional.linear(inputs, weight, bias)
        if self.packed is None:  # as the CPU's products read it; otherwise each of them rearranges it first
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, bias, "none", [], "")
        return product

    def of_normed(self, stream: Tensor, norm: _Norm) -> Tensor:
        """Those of the stream [N, D] after its norm, in the compute dtype."""
        if torch.is_grad_enabled():
            return _NormedProduct.apply(stream, norm, self, norm.weight, *self.parameters)
        return self(norm(stream).to(self.dtype))

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.weights[0].dtype

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """[O, D] and [O] of all layers, as their parameters are now."""
        state = [(parameter.data_ptr(), parameter._version) for parameter in self.parameters]
        if self.joined is None or state != self.state:
            self.state, self.packed = state, None
            with torch.inference_mode(False), torch.no_grad():
                self.joined = _joined(self.weights), _joined(self.biases) if self.biases else None
        if torch.is_grad_enabled():
            self.packed = None  # training changes the weights next
        return self.joined

    def gradients(self, upstream: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
        """Those of the parameters, from that of the outputs [N, O] and the inputs [N, D]."""
        sizes = [len(weight) for weight in self.weights]
        of_weights = (upstream.T @ inputs).split(sizes)
        return of_weights + (upstream.sum(0).split(sizes) if self.biases else ())


def _joined(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parameters)) if len(parameters) > 1 else parameters[0].detach()


class _NormedProduct(torch.autograd.Function):
    """A product of the normed stream. Kept for the backward pass: the stream, and one number a token."""

    @staticmethod
    def forward(
        ctx: Any, stream: Tensor, norm: _Norm, product: _Product, norm_weight: Tensor, *parameters: Tensor
    ) -> Tensor:
        weight, bias = product.weight_and_bias()
        scale = norm.scale(stream)
        normed = (stream * scale).mul_(norm_weight.float()).to(weight.dtype)
        ctx.save_for_backward(stream, scale, weight, norm_weight)
        ctx.product = product
        return functional.linear(normed, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        stream, scale, weight, norm_weight = ctx.saved_tensors
        upstream, width = gradients[0], stream.shape[-1]
        scaled = stream * scale
        normed = (scaled * norm_weight.float()).to(weight.dtype)
        of_parameters = ctx.product.gradients(upstream, normed)
        of_normed = (upstream @ weight).float()
        by_width = of_normed * scaled
        of_norm_weight = by_width.sum(0).to(norm_weight.dtype)
        along = (by_width @ norm_weight.float()[:, None]).div_(-width)
        of_stream = of_normed.mul_(norm_weight.float()).addcmul_(scaled, along).mul_(scale)
        return of_stream, None, None, of_norm_weight, *of_parameters


class _Rotated(torch.autograd.Function):
    """Rotary positions for the first heads of [N, S, W], by cosines and sines [N, 1, W/2]; the others stay."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        ctx.num_rotated = num_rotated
        return _rotated(states, cosines, sines, num_rotated).to(states.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosines, sines = ctx.saved_tensors
        return _rotated(gradients[0], cosines, -sines, ctx.num_rotated).to(gradients[0].dtype), None, None, None


def _rotated(states: Tensor, cosines: Tensor, sines: Tensor, num_rotated: int) -> Tensor:
    """In float32, so that a copy in the compute dtype is made only where it is kept."""
    wide = states.to(torch.promote_types(states.dtype, torch.float32), copy=True)
    first, second = wide[:, :num_rotated].chunk(2, dim=-1)
    turned = first * sines
    first.mul_(cosines).addcmul_(second, sines, value=-1)
    second.mul_(cosines).add_(turned)
    return wide


class _AddGated(torch.autograd.Function):
    """stream + (silu(gate) · up) Wᵀ of gates [N, 2·I]. Kept for the backward pass: the gates."""

    @staticmethod
    def forward(ctx: Any, stream: Tensor, gates: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gates, weight)
        return functional.linear(_gated(gates), weight).float().add_(stream)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gates, weight = ctx.saved_tensors
        upstream = gradients[0].to(weight.dtype)
        gate, up = gates.chunk(2, dim=-1)
        active = functional.silu(gate)
        of_gated = upstream @ weight
        of_weight = upstream.T @ (active * up)
        of_gates = torch.empty_like(gates)
        of_gate, of_up = of_gates.chunk(2, dim=-1)
        torch.mul(of_gated, active, out=of_up)
        torch.ops.aten.silu_backward.grad_input(of_gated.mul_(up), gate, grad_input=of_gate)
        return gradients[0], of_gates, of_weight


def _gated(gates: Tensor) -> Tensor:
    gate, up = gates.chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def _is_llama_like(model: PreTrainedModel) -> bool:
    decoder: Any = model.get_decoder()
    if model.device.type != "cpu" or not has_full_attention(model) or decoder.config._attn_implementation not in KINDS:
        return False
    if not all(hasattr(decoder, name) for name in ("embed_tokens", "rotary_emb", "norm", "layers")):
        return False
    return all(_is_llama_layer(layer) for layer in decoder.layers)


def _is_llama_layer(layer: Any) -> bool:
    parts = {name for name, _ in layer.named_children()}
    if parts != LAYER_PARTS:
        return False
    attention, mlp = (dict(part.named_children()) for part in (layer.self_attn, layer.mlp))
    if attention.keys() not in (ATTENTION_PARTS, ATTENTION_PARTS | HEAD_NORMS) or mlp.keys() != MLP_PARTS:
        return False
    linears = [attention[name] for name in ("q_proj", "k_proj", "v_proj")]
    others = [attention["o_proj"], *(mlp[name] for name in ("gate_proj", "up_proj", "down_proj"))]
    return (
        all(type(linear) is nn.Linear for linear in linears + others)
        and all(linear.bias is None for linear in others)
        and len({linear.bias is None for linear in linears}) == 1
    )


def _checked(model: PreTrainedModel) -> FusedDecoder | None:
    """The model's fused decoder, if it computes what the model computes."""
    fused = FusedDecoder(model)
    first = model.config.get_text_config(decoder=True).vocab_size // 2  # ordinary tokens, not the first, special ones
    tokens, positions = torch.arange(first, first + 8, device=model.device), torch.arange(8, device=model.device)
    with torch.no_grad():
        expected = model.get_decoder()(tokens[None], use_cache=False).last_hidden_state[0].float()
        found = fused(tokens, positions, fused.attention_within(SharedRows(8, [8], [()]))).float()
    error = (found - expected).norm(dim=1) / expected.norm(dim=1)
    return fused if float(error.median()) < (0.1 if model.dtype == torch.bfloat16 else 1e-3) else None
