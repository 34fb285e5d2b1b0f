"""Batch-hard mining: for every anchor of a batch its farthest positive and its nearest negative."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ._extension import check_kernel
from ._training import differentiable, differentiable_once, float32_under_autocast
from ._validate import (
    check_features,
    check_flag,
    check_floats,
    check_integers,
    check_no_nan,
    check_precision,
    check_shape,
    checks_values,
    is_ordinary,
    result_dtype,
    widen,
)
from .results import BatchHard

# ---------------------------------------------------------------------------------------------- batch_hard


def batch_hard(
    features: Tensor,
    labels: Tensor,
    *,
    normalize: bool = False,
    validate: bool | None = None,
    precision: str | None = None,
) -> BatchHard:
    """Farthest same-label and nearest other-label sample of every anchor, by Euclidean distance.

    An anchor is its own positive candidate, at distance 0. Equal distances: the lowest index. Both distances can be
    differentiated, once; identical rows have gradient 0.

    Args:
        features: (B, d) float tensor, B at least 2.
        labels: (B,) integer tensor of any values, on the same device.
        normalize: divide every row by its Euclidean norm first.
        validate: look for NaN, infinity and anchors without a negative; None looks on the CPU only, to spare CUDA the
            wait. Unlooked at, a NaN is never chosen, and an anchor without a candidate is given itself, at NaN.
        precision: how float32 matrices are multiplied to select in a large batch, "highest", "high" or
            "medium", as in `torch.set_float32_matmul_precision`; None takes torch's setting. Distances of what was
            selected, and small batches, are computed from the differences and have all digits.

    Returns:
        BatchHard(positive_distance, negative_distance, positive_index, negative_index), each (B,): distances in the
        features' dtype (computed in float32 for half precision), indices int64.

    Raises:
        TypeError: features are no float tensor, or labels no integer tensor.
        ValueError: shapes or devices do not fit, the batch is empty, a value is not finite, precision is no such word,
            or all labels are equal, so that no anchor has a negative.

    Source:
        Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, arXiv:1703.07737, section 2, eq. 5.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
        >>> mined = batch_hard(features, torch.tensor([5, 5, 8, 8]))
        >>> mined.positive_distance
        tensor([1., 1., 4., 4.])
        >>> mined.negative_index
        tensor([2, 2, 1, 1])
    """
    if (
        normalize is False
        and (validate is None or validate is True)
        and precision is None
        and is_ordinary(features, labels)
    ):
        with suppress(RuntimeError):  # the checks then say what is wrong
            return BatchHard(*_batch_hard(features, labels, check_precision(None), True, plain=True))
    check_flag("normalize", normalize)
    check_floats(features=features)
    check_shape("features", features, ("B", "d"))
    labels = _check_labels("features", features, labels)
    precision = check_precision(precision)
    check_kernel("batch_hard", features)
    dtype = result_dtype(features)
    (features,) = widen(features)
    if checks_values(features, validate):
        check_features(features=features)
        _check_negatives(labels)
    if normalize:
        features = torch.nn.functional.normalize(features, dim=1)
    positive, negative, positive_index, negative_index = _batch_hard(features, labels, precision)
    return BatchHard(positive.to(dtype), negative.to(dtype), positive_index, negative_index)


def _check_labels(name: str, like: Tensor, labels: Tensor) -> Tensor:
    """The labels as int64, once they fit the B rows of `like`."""
    check_integers({name: like}, labels=labels)
    check_shape("labels", labels, (like.shape[0],), like=f"like {name} {tuple(like.shape)}")
    return labels.to(torch.int64)


def _check_negatives(labels: Tensor) -> None:
    if (labels == labels[0]).all():
        label = labels[0].item()
        raise ValueError(
            f"labels should hold at least two different values, got {len(labels)} times {label}: anchor 0 (label"
            f" {label}) has no negative"
        )


@torch.library.register_fake("reidops::batch_hard")
def _batch_hard_fake(
    features: Tensor, labels: Tensor, precision: str, refuse: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    size = features.shape[0]
    return features.new_empty(size), features.new_empty(size), labels.new_empty(size), labels.new_empty(size)


@torch.library.register_fake("reidops::batch_hard_backward")
def _batch_hard_backward_fake(
    grad_positive: Tensor,
    grad_negative: Tensor,
    features: Tensor,
    positive_distance: Tensor,
    negative_distance: Tensor,
    positive_index: Tensor,
    negative_index: Tensor,
) -> Tensor:
    return features.new_empty(features.shape)


def _batch_hard_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    features, *_ = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # no zeros for the indices
    ctx.save_for_backward(features, *output)


def _batch_hard_backward(ctx: Any, grad_positive: Tensor | None, grad_negative: Tensor | None, *_: Any) -> tuple:
    features, positive, negative, *indices = ctx.saved_tensors
    grad_positive = torch.zeros_like(positive) if grad_positive is None else grad_positive
    grad_negative = torch.zeros_like(negative) if grad_negative is None else grad_negative
    grad = torch.ops.reidops.batch_hard_backward(grad_positive, grad_negative, features, positive, negative, *indices)
    return grad, *(None for _ in ctx.needs_input_grad[1:])


_batch_hard = differentiable(torch.ops.reidops.batch_hard.default, _batch_hard_setup, _batch_hard_backward)
differentiable_once("reidops::batch_hard_backward")
float32_under_autocast("reidops::batch_hard")


# ---------------------------------------------------------------------------------------------- from a distance matrix


def batch_hard_from_distance(distance: Tensor, labels: Tensor, *, validate: bool | None = None) -> BatchHard:
    """`batch_hard` on given distances, for metrics other than the Euclidean one.

    An anchor is its own positive candidate, at distance[i, i]. Equal distances: the lowest index. Differentiable.

    Args:
        distance: (B, B) float tensor, row i the distances of anchor i; any values but NaN.
        labels: (B,) integer tensor of any values, on the same device.
        validate: look for NaN and anchors without a negative; None looks on the CPU only, to spare CUDA the wait.

    Returns:
        BatchHard(positive_distance, negative_distance, positive_index, negative_index), each (B,): distances in the
        given dtype, indices int64.

    Raises:
        TypeError: distance is no float tensor, or labels no integer tensor.
        ValueError: shapes or devices do not fit, the batch is empty, a value is NaN, or all labels are equal.

    Source:
        As `batch_hard`.

    Example:
        >>> distance = torch.tensor([[0.0, 2.0, 5.0], [2.0, 0.0, 1.0], [5.0, 1.0, 0.0]])
        >>> mined = batch_hard_from_distance(distance, torch.tensor([0, 0, 1]))
        >>> mined.positive_distance, mined.negative_distance
        (tensor([2., 2., 0.]), tensor([5., 1., 1.]))
    """
    check_floats(distance=distance)
    check_shape("distance", distance, ("B", "B"))
    check_shape("distance", distance, (distance.shape[0], distance.shape[0]))
    labels = _check_labels("distance", distance, labels)
    check_kernel("batch_hard_from_distance", distance)
    dtype = result_dtype(distance)
    (distance,) = widen(distance)
    if checks_values(distance, validate):
        check_no_nan("distance", distance.detach())
        _check_negatives(labels)
    positive, negative, positive_index, negative_index = _batch_hard_from_distance(distance, labels)
    return BatchHard(positive.to(dtype), negative.to(dtype), positive_index, negative_index)


@torch.library.register_fake("reidops::batch_hard_from_distance")
def _batch_hard_from_distance_fake(distance: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _batch_hard_fake(distance, labels, "highest")


def _batch_hard_from_distance_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    indices = output[2:]
    ctx.mark_non_differentiable(*indices)
    ctx.save_for_backward(*indices)


def _batch_hard_from_distance_backward(ctx: Any, grad_positive: Tensor, grad_negative: Tensor, *_: Any) -> tuple:
    positive_index, negative_index = (index.unsqueeze(1) for index in ctx.saved_tensors)
    grad = grad_positive.new_zeros(len(grad_positive), len(grad_positive))
    grad = grad.scatter(1, positive_index, grad_positive.unsqueeze(1))  # a positive is never a negative too
    return grad.scatter(1, negative_index, grad_negative.unsqueeze(1)), None


_batch_hard_from_distance = differentiable(
    torch.ops.reidops.batch_hard_from_distance.default,
    _batch_hard_from_distance_setup,
    _batch_hard_from_distance_backward,
)
float32_under_autocast("reidops::batch_hard_from_distance")
