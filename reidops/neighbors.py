"""Nearest neighbours, streamed: the (M, N) distances are never held at once."""

import torch
from torch import Tensor

from ._extension import check_kernel
from ._numpy import Array, numpy_in_numpy_out
from ._validate import (
    check_between,
    check_features,
    check_floats,
    check_precision,
    check_shape,
    checks_values,
    widen,
)
from .results import Neighbors


@torch.no_grad()
@numpy_in_numpy_out
def knn(query: Array, gallery: Array, k: int, *, precision: str | None = None, validate: bool = True) -> Neighbors:
    """The k gallery rows nearest to each query, by squared Euclidean distance; not differentiable.

    Args:
        query: (M, d) float tensor or NumPy array, M at least 1.
        gallery: (N, d), same dtype and device, N at least 1.
        k: how many neighbours, 1 to N.
        precision: how float32 matrices are multiplied, "highest", "high" or "medium", as in
            `torch.set_float32_matmul_precision`; None takes torch's setting.
        validate: look for NaN and infinity; False spares CUDA the wait, and a distance that is NaN is then nobody's
            neighbour: what is missing of the k stands last, at infinity, with index 0.

    Returns:
        Neighbors(distance, index): (M, k) squared distances in query's dtype (float32 for half precision) and (M, k)
        int64 gallery rows, nearest first, equal distances by the lowest gallery row.

    Raises:
        TypeError: query or gallery is no float tensor or array, their dtypes differ, or k is no integer.
        ValueError: shapes, devices, k or precision do not fit, a set is empty, or a value is not finite.

    Example:
        >>> query = torch.tensor([[0.0, 0.0]])
        >>> gallery = torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
        >>> knn(query, gallery, k=2)
        Neighbors(distance=tensor([[1., 4.]]), index=tensor([[1, 2]]))
    """
    check_floats(query=query, gallery=gallery)
    check_shape("query", query, ("M", "d"))
    check_shape("gallery", gallery, ("N", query.shape[1]), like=f"like query {tuple(query.shape)}")
    k = check_between("k", k, 1, gallery.shape[0], why="the size of the gallery")
    precision = check_precision(precision)
    check_kernel("knn", query)
    with_itself = gallery is query  # then each pair is made once
    query, gallery = widen(query, gallery)
    if with_itself:
        gallery = query
    if checks_values(query, validate):
        check_features(query=query, gallery=gallery)
    return Neighbors(*torch.ops.reidops.knn(query, gallery, k, precision))


@torch.library.register_fake("reidops::knn")
def _knn_fake(query: Tensor, gallery: Tensor, k: int, precision: str) -> tuple[Tensor, Tensor]:
    rows = query.shape[0]
    return query.new_empty(rows, k), query.new_empty(rows, k, dtype=torch.int64)
