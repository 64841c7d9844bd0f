"""What an operation makes of meta tensors, by its rule of shapes: torch's own meta functions import its compiler first,
which takes seconds. An operation without a rule here is left to them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
META = torch.device("meta")
Rule = Callable[..., Any]


def make_result(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The result of an operation, shapes and types alone."""
    rule = RULES.get(func.overloadpacket)
    return func(*args, **named) if rule is None else rule(*args, **named)


def _like(tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Of that shape, the channels last where those of `tensor` are."""
    is_last = len(shape) == 4 and tensor.ndim == 4 and tensor.shape[1] > 1
    is_last = is_last and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(tuple(shape), dtype=dtype or tensor.dtype, device=META, memory_format=layout)


def _pointwise(*args: Any, **named: Any) -> Tensor:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    first = max(tensors, key=lambda tensor: tensor.ndim)
    dtype = first.dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype) if tensor.ndim else dtype
    return _like(first, _broadcast([tensor.shape for tensor in tensors]), dtype)


def _broadcast(shapes: Sequence[torch.Size]) -> list[int]:
    rank = max(len(shape) for shape in shapes)
    aligned = ((1,) * (rank - len(shape)) + tuple(shape) for shape in shapes)
    return [max(sides) if 0 not in sides else 0 for sides in zip(*aligned, strict=True)]


def _same(x: Tensor, *args: Any, **named: Any) -> Tensor:
    return _like(x, x.shape)


def _itself(x: Tensor, *args: Any, **named: Any) -> Tensor:
    return x


def _converted(x: Tensor, *, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
    return _like(x, x.shape, dtype)


def _convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    transposed: bool, *args: Any,
) -> Tensor:  # fmt: skip
    assert not transposed, "no network here has one"
    sides = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    made = [(side + 2 * pad - dilate * (kernel - 1) - 1) // step + 1 for side, kernel, step, pad, dilate in sides]
    is_last = x.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    layout = torch.channels_last if is_last else torch.contiguous_format
    shape = (len(x), len(weight), *made)
    return torch.empty(shape, dtype=x.dtype, device=META, memory_format=layout) if is_last else _like(x, shape)


def _normalised(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    mean, deviation = (torch.empty(len(x), 1, dtype=x.dtype, device=META) for _ in range(2))
    return _like(x, x.shape), mean, deviation


def _add_matmul(bias: Tensor, a: Tensor, b: Tensor, **named: Any) -> Tensor:
    return _matmul(a, b)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty(*a.shape[:-1], b.shape[-1], dtype=a.dtype, device=META)


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return _like(tensors[0], shape)


def _upsampled(x: Tensor, size: Sequence[int], *args: Any) -> Tensor:
    return _like(x, (*x.shape[:2], *size))


def _padded(x: Tensor, pad: Sequence[int], *args: Any) -> Tensor:
    shape = list(x.shape)
    for axis in range(len(pad) // 2):
        shape[-1 - axis] += pad[2 * axis] + pad[2 * axis + 1]
    return _like(x, shape)


def _embedded(weight: Tensor, indices: Tensor, *args: Any) -> Tensor:
    return torch.empty(*indices.shape, weight.shape[1], dtype=weight.dtype, device=META)


def _shuffled(x: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = x.shape
    return _like(x, (batch, channels // factor**2, height * factor, width * factor))


def _pooled(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] = (0, 0)) -> Any:
    sides = zip(x.shape[2:], kernel, stride, padding, strict=True)
    made = _like(x, (*x.shape[:2], *((side + 2 * pad - size) // step + 1 for side, size, step, pad in sides)))
    return made, torch.empty(made.shape, dtype=torch.int64, device=META)


def _reduced(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False, **named: Any) -> Tensor:
    axes = {axis % x.ndim for axis in (dim or range(x.ndim))}
    kept = [1 if axis in axes else side for axis, side in enumerate(x.shape) if keepdim or axis not in axes]
    return torch.empty(kept, dtype=x.dtype, device=META)


def _made_new(x: Tensor, shape: Sequence[int], *args: Any, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype or x.dtype, device=META)


def _counted(end: int, *args: Any, dtype: torch.dtype | None = None, **named: Any) -> Tensor:
    return torch.empty(end, dtype=dtype or torch.int64, device=META)


POINTWISE = (
    aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.addcmul, aten.silu, aten.gelu, aten.relu, aten.leaky_relu,
    aten.sigmoid, aten.exp, aten.sin, aten.cos, aten.neg, aten.rsqrt, aten.sqrt, aten.abs, aten.clamp, aten.lerp,
    aten.maximum, aten.minimum, aten.tanh, aten.pow,
)  # fmt: skip
IN_PLACE = (
    aten.add_, aten.sub_, aten.mul_, aten.div_, aten.addcmul_, aten.relu_, aten.leaky_relu_, aten.silu_, aten.sigmoid_,
    aten.clamp_, aten.copy_, aten.fill_, aten.zero_,
)  # fmt: skip
OTHERS: dict[Any, Rule] = {
    aten.clone: _same,
    aten._softmax: _same,
    aten._to_copy: _converted,
    aten.convolution: _convolution,
    aten.native_group_norm: _normalised,
    aten.native_layer_norm: _normalised,
    aten.addmm: _add_matmul,
    aten.mm: _matmul,
    aten.bmm: _matmul,
    aten.cat: _cat,
    aten.upsample_nearest2d: _upsampled,
    aten.upsample_bilinear2d: _upsampled,
    aten.upsample_bicubic2d: _upsampled,
    aten.constant_pad_nd: _padded,
    aten.reflection_pad2d: _padded,
    aten.replication_pad2d: _padded,
    aten.embedding: _embedded,
    aten._upsample_bicubic2d_aa: _upsampled,
    aten.pixel_shuffle: _shuffled,
    aten.max_pool2d_with_indices: _pooled,
    aten.amax: _reduced,
    aten.sum: _reduced,
    aten.mean: _reduced,
    aten.zeros_like: _converted,
    aten.empty_like: _converted,
    aten.new_empty: _made_new,
    aten.new_zeros: _made_new,
    aten.new_full: _made_new,
    aten.arange: _counted,
}
RULES: Mapping[Any, Rule] = dict.fromkeys(POINTWISE, _pointwise) | dict.fromkeys(IN_PLACE, _itself) | OTHERS
