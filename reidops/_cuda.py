"""CUDA kernels that are composed of torch's own, where a written one is not there yet."""

import torch
from torch import Tensor


def euclidean_distance(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    """(M, d), (N, d) -> (M, N), by one matrix product; nearly equal points lose digits that the CPU kernel keeps."""
    distance = x.square().sum(1)[:, None] + y.square().sum(1)[None] - 2 * x @ y.T
    distance = distance.clamp_(min=0)
    return distance if squared else distance.sqrt_()


def batch_hard(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Selection on the (B, B) matrix, then the two distances again from the differences."""
    squared = euclidean_distance(features, features, squared=True).fill_diagonal_(0)
    _, _, positive, negative = torch.ops.reidops.batch_hard_from_distance(squared, labels)
    distances = [(features - features[index]).square().sum(1).sqrt() for index in (positive, negative)]
    return *distances, positive, negative


def register() -> None:
    """Makes them the operators' CUDA kernels; what is selected from comes from the compiled CUDA module."""
    torch.library.impl("reidops::euclidean_distance", "cuda", euclidean_distance)
    torch.library.impl("reidops::batch_hard", "cuda", batch_hard)
