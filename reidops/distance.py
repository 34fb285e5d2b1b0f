"""Distances: Euclidean, the shortest path through a cost matrix, and DMLI, the aligned distance of striped images."""

import math
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ._extension import check_kernel
from ._numpy import Array, numpy_in_numpy_out
from ._training import differentiable, differentiable_once, float32_under_autocast
from ._validate import (
    check_features,
    check_finite,
    check_flag,
    check_floats,
    check_precision,
    check_shape,
    checks_values,
    is_ordinary,
    result_dtype,
    widen,
)

# ---------------------------------------------------------------------------------------------- euclidean_distance


@numpy_in_numpy_out
def euclidean_distance(x: Array, y: Array, *, squared: bool = False, validate: bool | None = None) -> Array:
    """Euclidean distance of every row of x to every row of y.

    Identical rows have distance exactly 0 and gradient 0 there. Differentiable twice.

    Args:
        x: (M, d) float tensor or NumPy array; M may be 0.
        y: (N, d), same dtype and device; N may be 0.
        squared: leave out the square root.
        validate: look for NaN and infinity in x and y; None looks on the CPU only, to spare CUDA the wait.

    Returns:
        (M, N) distances in x's dtype (computed in float32 for half precision; float32 for float16 arrays).

    Raises:
        TypeError: x or y is no float tensor or array, or their dtypes differ.
        ValueError: shapes or devices do not fit, a value is not finite, or so large that its square is not.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
        >>> y = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
        >>> euclidean_distance(x, y)
        tensor([[0., 4.],
                [3., 5.]])
    """
    check_flag("squared", squared)
    check_floats(x=x, y=y)
    check_shape("x", x, ("M", "d"), empty=True)
    check_shape("y", y, ("N", x.shape[1]), like=f"like x {tuple(x.shape)}", empty=True)
    check_kernel("euclidean_distance", x)
    dtype = result_dtype(x)
    x, y = widen(x, y)
    if checks_values(x, validate):
        check_features(x=x, y=y)
    return torch.ops.reidops.euclidean_distance(x, y, squared).to(dtype)


@torch.library.register_fake("reidops::euclidean_distance")
def _euclidean_distance_fake(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


@torch.library.register_fake("reidops::euclidean_distance_backward")
def _euclidean_distance_backward_fake(
    grad: Tensor, x: Tensor, y: Tensor, distance: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _euclidean_distance_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, y, ctx.squared = inputs
    ctx.save_for_backward(x, y, output)


def _euclidean_distance_backward(ctx: Any, grad: Tensor) -> tuple:
    grads = torch.ops.reidops.euclidean_distance_backward(grad, *ctx.saved_tensors, ctx.squared)
    return *(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=False)), None


def _composed_gradient(grad: Tensor, x: Tensor, y: Tensor, distance: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    """The gradient in torch's own operators, which can be differentiated again.

    grad_x[i] = sum over j of weight[i, j] (x[i] - y[j]), and the same for y with the roles exchanged. A common shift
    changes no difference; taking the centre away keeps digits where features are close to each other.
    """
    centre = y.detach().sum(0) / max(y.shape[0], 1)
    x, y = x - centre, y - centre
    weight = 2 * grad if squared else grad / distance.masked_fill(distance == 0, math.inf)
    return weight.sum(1, keepdim=True) * x - weight @ y, weight.sum(0).unsqueeze(1) * y - weight.mT @ x


def _second_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    *tensors, ctx.squared = inputs
    ctx.save_for_backward(*tensors)


def _second_backward(ctx: Any, *grads: Tensor) -> tuple:
    if torch.is_grad_enabled():
        raise NotImplementedError("reidops.euclidean_distance can be differentiated twice, not three times")
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        first = _composed_gradient(*inputs, ctx.squared)
        second = torch.autograd.grad(first, inputs, grads, allow_unused=True)
    return *second, None


torch.library.register_autograd(
    "reidops::euclidean_distance", _euclidean_distance_backward, setup_context=_euclidean_distance_setup
)
torch.library.register_autograd("reidops::euclidean_distance_backward", _second_backward, setup_context=_second_setup)
float32_under_autocast("reidops::euclidean_distance")


# ---------------------------------------------------------------------------------------------- shortest_path


@numpy_in_numpy_out
def shortest_path(cost: Array, *, validate: bool | None = None) -> Array:
    """Cost of the cheapest path from the first cell to the last that moves right or down, both end cells included.

    Where the ways from the left and from above cost the same, the path comes from the left; the gradient is 1 on the
    cells of that path and 0 elsewhere.

    Args:
        cost: (..., m, n) float tensor or NumPy array of cell costs; leading dimensions may be 0.
        validate: look for NaN and infinity; None looks on the CPU only.

    Returns:
        (...) costs of the paths, in cost's dtype (float32 for float16 arrays).

    Raises:
        TypeError: cost is no float tensor or array.
        ValueError: cost has fewer than two dimensions, no rows or no columns, or a value is not finite.

    Source:
        Zhang et al., AlignedReID, arXiv:1711.08184, section 3.1, eq. 2.

    Example:
        >>> shortest_path(torch.tensor([[1.0, 9.0, 9.0], [1.0, 1.0, 1.0]]))
        tensor(4.)
    """
    check_floats(cost=cost)
    if cost.ndim < 2:
        raise ValueError(f"cost should have shape (..., m, n), got {tuple(cost.shape)}")
    leading, (m, n) = cost.shape[:-2], cost.shape[-2:]
    if m == 0 or n == 0:
        raise ValueError(f"cost should have at least one row and one column, got shape {tuple(cost.shape)}")
    check_kernel("shortest_path", cost)
    dtype = result_dtype(cost)
    (cost,) = widen(cost)
    if checks_values(cost, validate):
        check_finite(cost=cost)
    return _shortest_path(cost.reshape(leading.numel(), m, n)).reshape(leading).to(dtype)


@torch.library.register_fake("reidops::shortest_path")
def _shortest_path_fake(cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[0])


@torch.library.register_fake("reidops::shortest_path_backward")
def _shortest_path_backward_fake(grad: Tensor, cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape)


def _shortest_path_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _shortest_path_backward(ctx: Any, grad: Tensor) -> Tensor:
    (cost,) = ctx.saved_tensors
    return torch.ops.reidops.shortest_path_backward(grad, cost)


_shortest_path = differentiable(torch.ops.reidops.shortest_path.default, _shortest_path_setup, _shortest_path_backward)
differentiable_once("reidops::shortest_path_backward")
float32_under_autocast("reidops::shortest_path")


@torch.no_grad()
@numpy_in_numpy_out
def shortest_path_indices(cost: Array) -> Array:
    """Cells of the cheapest path, in order: what to draw to see which stripes were matched.

    Not differentiable.

    Args:
        cost: (m, n) float tensor or NumPy array of cell costs.

    Returns:
        (m + n - 1, 2) int64 rows (i, j), from (0, 0) to (m - 1, n - 1); ties as in `shortest_path`.

    Raises:
        TypeError: cost is no float tensor or array.
        ValueError: cost is not a matrix of at least one cell, or a value is not finite.

    Source:
        Zhang et al., AlignedReID, arXiv:1711.08184, section 3.1, eq. 2.

    Example:
        >>> shortest_path_indices(torch.tensor([[1.0, 9.0, 9.0], [1.0, 1.0, 1.0]])).tolist()
        [[0, 0], [1, 0], [1, 1], [1, 2]]
    """
    check_floats(cost=cost)
    check_shape("cost", cost, ("m", "n"))
    check_kernel("shortest_path_indices", cost)
    (cost,) = widen(cost)
    if checks_values(cost):
        check_finite(cost=cost)
    return torch.ops.reidops.shortest_path_indices(cost)


@torch.library.register_fake("reidops::shortest_path_indices")
def _shortest_path_indices_fake(cost: Tensor) -> Tensor:
    return cost.new_empty(cost.shape[0] + cost.shape[1] - 1, 2, dtype=torch.int64)


# ---------------------------------------------------------------------------------------------- dmli


def dmli(x: Tensor, y: Tensor, *, aligned: bool = True, validate: bool | None = None) -> Tensor:
    """Dynamically matched local distance of pairs of striped images; differentiable, for training.

    Two stripes at Euclidean distance d cost (e^d - 1) / (e^d + 1), computed as tanh(d / 2), which cannot overflow.
    The distance of two images is the shortest path through their (m, n) stripe costs. It can be differentiated once;
    identical stripes have gradient 0.

    Args:
        x: (B, m, d) float tensor, m stripes of d channels an image, top first; B may be 0.
        y: (B, n, d), same dtype and device; x[b] and y[b] are a pair.
        aligned: True takes the shortest path; False sums the diagonal, stripe i with stripe i, and needs m == n.
        validate: look for NaN and infinity in x and y; None looks on the CPU only, to spare CUDA the wait.

    Returns:
        (B,) distances, 0 to m + n - 1, in x's dtype (computed in float32 for half precision).

    Raises:
        TypeError: x or y is no float tensor, or their dtypes differ.
        ValueError: shapes or devices do not fit, or a value is not finite.

    Source:
        Zhang et al., AlignedReID, arXiv:1711.08184, section 3.1, eq. 1 and 2; named DMLI in Luo et al., AlignedReID++,
        Pattern Recognition 94 (2019), section 3.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0], [2.0], [2.0]]])   # one image, four stripes of one channel
        >>> y = torch.tensor([[[0.0], [0.0], [0.0], [2.0]]])   # the same, with the boundary two stripes lower
        >>> dmli(x, y)
        tensor([0.7616])
        >>> dmli(x, y, aligned=False)
        tensor([1.5232])
    """
    if isinstance(aligned, bool) and (validate is None or validate is True) and is_ordinary(x, y):
        with suppress(RuntimeError):  # the checks then say what is wrong
            return _dmli(x, y, aligned, True, plain=True)
    check_floats(x=x, y=y)
    check_shape("x", x, ("B", "m", "d"), empty=True)
    check_shape("y", y, (x.shape[0], "n", x.shape[2]), like=f"like x {tuple(x.shape)}", empty=True)
    _check_stripes(x, y, aligned)
    check_kernel("dmli", x)
    dtype = result_dtype(x)
    x, y = widen(x, y)
    if checks_values(x, validate):
        check_finite(x=x, y=y)
    return _dmli(x, y, aligned).to(dtype)


def _check_stripes(x: Tensor, y: Tensor, aligned: bool) -> None:
    check_flag("aligned", aligned)
    if not aligned and x.shape[1] != y.shape[1]:
        raise ValueError(
            f"aligned=False compares stripe i with stripe i, so y should have {x.shape[1]} stripes like x, got"
            f" {y.shape[1]}"
        )


@torch.library.register_fake("reidops::dmli")
def _dmli_fake(x: Tensor, y: Tensor, aligned: bool, refuse: bool = False) -> Tensor:
    return x.new_empty(x.shape[0])


@torch.library.register_fake("reidops::dmli_backward")
def _dmli_backward_fake(grad: Tensor, x: Tensor, y: Tensor, aligned: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _dmli_setup(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, y, ctx.aligned, *_ = inputs
    ctx.save_for_backward(x, y)


def _dmli_backward(ctx: Any, grad: Tensor) -> tuple:
    x, y = ctx.saved_tensors
    grad_x, grad_y = torch.ops.reidops.dmli_backward(grad, x, y, ctx.aligned)
    needs_x, needs_y, *rest = ctx.needs_input_grad
    return grad_x if needs_x else None, grad_y if needs_y else None, *(None for _ in rest)


_dmli = differentiable(torch.ops.reidops.dmli.default, _dmli_setup, _dmli_backward)
differentiable_once("reidops::dmli_backward")
float32_under_autocast("reidops::dmli")


# ---------------------------------------------------------------------------------------------- dmli_matrix


@torch.no_grad()
@numpy_in_numpy_out
def dmli_matrix(
    x: Array, y: Array, *, aligned: bool = True, precision: str | None = None, validate: bool = True
) -> Array:
    """DMLI distance of every image of x to every image of y; for evaluation, not differentiable.

    Args:
        x: (M, m, d) float tensor or NumPy array, m stripes of d channels an image, top first; M may be 0.
        y: (N, n, d), same dtype and device; N may be 0.
        aligned: True takes the shortest path; False sums the diagonal, stripe i with stripe i, and needs m == n.
        precision: how float32 matrices are multiplied, "highest", "high" or "medium", as in
            `torch.set_float32_matmul_precision`; None takes torch's setting.
        validate: look for NaN and infinity; False spares CUDA the wait, and what they touch becomes NaN.

    Returns:
        (M, N) distances, 0 to m + n - 1, in x's dtype; float32 for half precision.

    Raises:
        TypeError: x or y is no float tensor or array, or their dtypes differ.
        ValueError: shapes, devices or precision do not fit, or a value is not finite.

    Source:
        As `dmli`.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0], [4.0]]])
        >>> y = torch.tensor([[[0.0], [0.0], [2.0]], [[0.0], [2.0], [4.0]]])
        >>> dmli_matrix(x, y, aligned=False)
        tensor([[1.5232, 0.0000]])
    """
    check_floats(x=x, y=y)
    check_shape("x", x, ("M", "m", "d"), empty=True)
    check_shape("y", y, ("N", "n", x.shape[2]), like=f"like x {tuple(x.shape)}", empty=True)
    _check_stripes(x, y, aligned)
    precision = check_precision(precision)
    check_kernel("dmli_matrix", x)
    x, y = widen(x, y)
    if checks_values(x, validate):
        check_finite(x=x, y=y)
    return torch.ops.reidops.dmli_matrix(x, y, aligned, precision)


@torch.library.register_fake("reidops::dmli_matrix")
def _dmli_matrix_fake(x: Tensor, y: Tensor, aligned: bool, precision: str) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])
