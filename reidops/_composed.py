"""Operators composed of torch's own, for CUDA where a kernel is not written yet and for second derivatives."""

import math

import torch
from torch import Tensor


def euclidean_distance(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    """(M, d), (N, d) -> (M, N), by one matrix product; nearly equal points lose digits that the CPU kernel keeps."""
    distance = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    distance = distance.clamp_(min=0)
    return distance if squared else distance.sqrt_()


def euclidean_distance_backward(
    grad: Tensor, x: Tensor, y: Tensor, distance: Tensor, squared: bool
) -> tuple[Tensor, Tensor]:
    """grad_x[i] = sum over j of weight[i, j] (x[i] - y[j]), and the same for y with the roles exchanged.

    A common shift changes no difference; taking the centre away keeps digits where features are close to each other.
    """
    centre = y.detach().sum(0) / max(y.shape[0], 1)
    x, y = x - centre, y - centre
    weight = 2 * grad if squared else grad / distance.masked_fill(distance == 0, math.inf)
    return weight.sum(1, keepdim=True) * x - weight @ y, weight.sum(0).unsqueeze(1) * y - weight.mT @ x


def batch_hard(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Selection on the (B, B) matrix, then the two distances again from the differences."""
    squared = euclidean_distance(features, features, squared=True).fill_diagonal_(0)
    _, _, positive, negative = torch.ops.reidops.batch_hard_from_distance(squared, labels)
    distances = [(features - features[index]).square().sum(1).sqrt() for index in (positive, negative)]
    return *distances, positive, negative


def register() -> None:
    """Makes them the operators' CUDA kernels; what is selected from comes from the compiled CUDA module."""
    torch.library.impl("reidops::euclidean_distance", "cuda", euclidean_distance)
    torch.library.impl("reidops::euclidean_distance_backward", "cuda", euclidean_distance_backward)
    torch.library.impl("reidops::batch_hard", "cuda", batch_hard)
