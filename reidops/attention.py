"""Channel attention: the leader attention of MuDeep."""

import math
from typing import Any

import torch
from torch import Tensor

from ._extension import check_kernel
from ._training import differentiable_once
from ._validate import HALF, check_finite, check_floats, check_shape, checks_values, result_dtype, widen


def channel_attention(query: Tensor, key: Tensor, value: Tensor, *, validate: bool | None = None) -> Tensor:
    """softmax(query @ key^T) @ value, each channel attending to all channels, without the usual scaling.

    A feature map (B, C, H, W) comes in flattened to (B, C, L) with L = H W. A value has a length of its own: averages
    over positions commute with the attention over channels, so that where only regions' averages of the attended map
    are used, attending to the averaged values costs half the products forward and a third of them backward. It can be
    differentiated once.

    Args:
        query: (B, C, L) float tensor; B may be 0.
        key: (B, C, L), same dtype and device.
        value: (B, C, V), same dtype and device.
        validate: look for NaN and infinity; None looks on the CPU only, to spare CUDA the wait.

    Returns:
        (B, C, V) in query's dtype. On the CPU half precision is computed in float32. On CUDA its products run on the
        tensor cores and are summed in float32, the scores stay float32, and their gradient is rounded to query's dtype,
        as is the softmax where V > 16; float32 products follow torch.set_float32_matmul_precision, as torch.bmm's do.
        Under autocast the result is float32, but for half-precision CUDA tensors: these stay what they are, as in
        torch.bmm.

    Raises:
        TypeError: an argument is no float tensor, or their dtypes differ.
        ValueError: shapes or devices differ, or a value or a score is not finite.

    Source:
        Qian et al., Leader-based Multi-Scale Attention Deep Architecture for Person Re-identification, TPAMI 2020,
        section 3.3.

    Example:
        >>> query = torch.zeros(1, 2, 3)   # equal scores: every channel becomes the mean of the channels
        >>> value = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]])
        >>> channel_attention(query, value, value)
        tensor([[[2., 3., 4.],
                 [2., 3., 4.]]])
    """
    check_floats(query=query, key=key, value=value)
    check_shape("query", query, ("B", "C", "L"), empty=True)
    check_shape("key", key, tuple(query.shape), like="like query", empty=True)
    check_shape("value", value, (*query.shape[:2], "V"), like="like query", empty=True)
    check_kernel("channel_attention", query)
    half = query.device.type == "cuda" and query.dtype in HALF and query.dtype == key.dtype == value.dtype
    dtype = query.dtype if half else result_dtype(query)
    if not half:
        query, key, value = widen(query, key, value)
    if checks_values(query, validate):
        check_finite(query=query, key=key, value=value)
    output, statistics = torch.ops.reidops.channel_attention(query, key, value)
    if checks_values(query, validate):
        _check_scores(query, key, statistics)
    return output.to(dtype)


def _check_scores(query: Tensor, key: Tensor, statistics: Tensor) -> None:
    """The scores are finite: a row with an infinite one has no softmax."""
    statistics = statistics.detach()[:, :2]
    if not math.isfinite(statistics.sum()) and not statistics.isfinite().all():
        largest = f"{query.abs().amax().item():.3g} in query and {key.abs().amax().item():.3g} in key"
        raise ValueError(
            f"query and key should have products that fit {str(statistics.dtype)[6:]}, got values up to {largest}"
        )


@torch.library.register_fake("reidops::channel_attention")
def _channel_attention_fake(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, channels, length = value.shape
    if query.dtype not in HALF:
        return value.new_empty(value.shape), query.new_empty(batch, 2, channels)
    rows = 2 + (length + 1) // 2  # on CUDA half types leave more to backward
    return value.new_empty(value.shape), query.new_empty(batch, rows, channels, dtype=torch.float32)


@torch.library.register_fake("reidops::channel_attention_backward")
def _channel_attention_backward_fake(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, output: Tensor, statistics: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _channel_attention_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    attended, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(*inputs, attended, statistics)


def _channel_attention_backward(ctx: Any, grad: Tensor, _: Any) -> tuple:
    grads = torch.ops.reidops.channel_attention_backward(grad, *ctx.saved_tensors)
    return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=True))


torch.library.register_autograd(
    "reidops::channel_attention", _channel_attention_backward, setup_context=_channel_attention_setup
)
differentiable_once("reidops::channel_attention_backward")
torch.library.register_autocast("reidops::channel_attention", "cpu", torch.float32)  # CUDA has kernels of every dtype
