"""Re-ranking by k-reciprocal encoding, from features or from given distances."""

import torch
from torch import Tensor

from ._extension import check_kernel
from ._numpy import Array, numpy_in_numpy_out
from ._validate import (
    check_between,
    check_choice,
    check_features,
    check_finite,
    check_floats,
    check_not_negative,
    check_number,
    check_precision,
    check_shape,
    checks_values,
    widen,
)
from .results import Neighbors

VARIANTS = ("zhong2017", "torchreid", "jaccard")


# ---------------------------------------------------------------------------------------------- from features


@torch.no_grad()
@numpy_in_numpy_out
def k_reciprocal(
    query: Array | None,
    gallery: Array | None,
    *,
    query_local: Array | None = None,
    gallery_local: Array | None = None,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    variant: str = "zhong2017",
    topk: int | None = None,
    precision: str | None = None,
    validate: bool = True,
) -> Array | Neighbors:
    """Distances of queries to the gallery, re-ranked by how many reciprocal neighbours two images share.

    The original distance d among all T = M + N images is the squared Euclidean distance of the features, the DMLI
    distance of the local features, or the sum of both where both are given. Not differentiable.

    Args:
        query: (M, d) float tensor or NumPy array, or None where only local features are given.
        gallery: (N, d), same dtype and device, or None as query.
        query_local: (M, m, c) local features, m stripes of c channels an image, or None.
        gallery_local: (N, m, c), or None as query_local.
        k1: neighbours of the reciprocal sets, at least 1; k1 + 1 is at most T ("jaccard": k1).
        k2: neighbours whose encodings are averaged (query expansion), 1 to T; 1 leaves it out.
        lambda_value: share of the original distance in the result, 0 to 1.
        variant: "zhong2017", the paper's; "torchreid", which squares d once more; "jaccard", the faiss family's: k1
            neighbours where the paper takes k1 + 1, weights exp(-d) of d itself and not of its share of the row's
            maximum, and the Jaccard distance alone as the result (lambda_value has no say).
        topk: None for the whole matrix, or how many gallery images to give a query, 1 to N; then memory is
            proportional to (M + N) k, not M N.
        precision: how float32 matrices are multiplied, "highest", "high" or "medium", as in
            `torch.set_float32_matmul_precision`; None takes torch's setting.
        validate: look for NaN and infinity; False spares CUDA the wait. A distance that is NaN is then nobody's
            neighbour.

    Returns:
        (M, N) re-ranked distances in the features' dtype (float32 for half precision); with topk
        Neighbors(distance, index), (M, topk) each, nearest first, equal distances by the lowest gallery row: on the CPU
        the head of the sorted matrix to the last bit. On CUDA the products of queries and gallery are made again in
        other shapes, where cuBLAS may round the last digits of d otherwise.

    Raises:
        TypeError: an argument is no float tensor or array, dtypes differ, or k1, k2 or topk is no integer.
        ValueError: a pair is incomplete, a set is empty, shapes or devices do not fit, k1, k2, lambda_value, variant,
            topk or precision is out of range, or a value is not finite.

    Source:
        Zhong et al., Re-ranking Person Re-identification with k-reciprocal Encoding, CVPR 2017, section 3, eq. 12.

    Example:
        >>> query = torch.tensor([[0.0]])
        >>> gallery = torch.tensor([[0.5], [-1.0], [9.0], [-0.5]])
        >>> k_reciprocal(query, gallery, k1=2, k2=1, topk=2).index
        tensor([[0, 3]])
    """
    num_query, num_gallery = _check_sets(query, gallery, query_local, gallery_local)
    k1, k2, lambda_value = _check_settings(k1, k2, lambda_value, variant, num_query + num_gallery)
    precision = check_precision(precision)
    first = query if query is not None else query_local
    tensors = widen(query, gallery, query_local, gallery_local)
    if checks_values(first, validate):
        check_features(**_given(*tensors[:2], None, None))
        check_finite(**_given(None, None, *tensors[2:]))
    if topk is None:
        check_kernel("k_reciprocal", first)
        return torch.ops.reidops.k_reciprocal(*tensors, k1, k2, lambda_value, variant, precision)
    topk = check_between("topk", topk, 1, num_gallery, why="the size of the gallery")
    check_kernel("k_reciprocal_topk", first)
    return Neighbors(*torch.ops.reidops.k_reciprocal_topk(*tensors, k1, k2, lambda_value, variant, topk, precision))


def _given(
    query: Tensor | None, gallery: Tensor | None, query_local: Tensor | None, gallery_local: Tensor | None
) -> dict[str, Tensor]:
    """The features that are there, by name."""
    features = {"query": query, "gallery": gallery, "query_local": query_local, "gallery_local": gallery_local}
    return {name: tensor for name, tensor in features.items() if tensor is not None}


def _check_sets(
    query: Tensor | None, gallery: Tensor | None, query_local: Tensor | None, gallery_local: Tensor | None
) -> tuple[int, int]:
    """How many queries and gallery images there are, once the given features fit together."""
    given = _given(query, gallery, query_local, gallery_local)
    if not given:
        raise ValueError("query and gallery, query_local and gallery_local, or all four should be given, got none")
    for name, other in (("query", "gallery"), ("query_local", "gallery_local")):
        pair = [key for key in (name, other) if key in given]
        if len(pair) == 1:
            raise ValueError(f"{name} and {other} should be given together, got only {pair[0]}")
    check_floats(**given)
    num_query, num_gallery = "M", "N"
    if query is not None:
        check_shape("query", query, ("M", "d"))
        check_shape("gallery", gallery, ("N", query.shape[1]), like=f"like query {tuple(query.shape)}")
        num_query, num_gallery = query.shape[0], gallery.shape[0]
    if query_local is not None:
        check_shape("query_local", query_local, (num_query, "m", "c"), like="" if query is None else "like query")
        stripes = (num_gallery, *query_local.shape[1:])
        check_shape("gallery_local", gallery_local, stripes, like=f"like query_local {tuple(query_local.shape)}")
        num_query, num_gallery = query_local.shape[0], gallery_local.shape[0]
    return num_query, num_gallery


def _check_settings(k1: int, k2: int, lambda_value: float, variant: str, total: int) -> tuple[int, int, float]:
    """k1, k2 and lambda_value as plain numbers, once they are in range for `total` images."""
    check_choice("variant", variant, VARIANTS)
    if variant == "jaccard":
        k1 = check_between("k1", k1, 1, total, why="the number of images")
    else:
        k1 = check_between("k1", k1, 1, total - 1, why="the number of images less one")
    k2 = check_between("k2", k2, 1, total, why="the number of images")
    return k1, k2, check_number("lambda_value", lambda_value, 0, 1)


@torch.library.register_fake("reidops::k_reciprocal")
def _k_reciprocal_fake(
    query: Tensor | None,
    gallery: Tensor | None,
    query_local: Tensor | None,
    gallery_local: Tensor | None,
    k1: int,
    k2: int,
    lambda_value: float,
    variant: str,
    precision: str,
) -> Tensor:
    queries, images = (query, gallery) if query is not None else (query_local, gallery_local)
    return queries.new_empty(queries.shape[0], images.shape[0])


@torch.library.register_fake("reidops::k_reciprocal_topk")
def _k_reciprocal_topk_fake(
    query: Tensor | None,
    gallery: Tensor | None,
    query_local: Tensor | None,
    gallery_local: Tensor | None,
    k1: int,
    k2: int,
    lambda_value: float,
    variant: str,
    topk: int,
    precision: str,
) -> tuple[Tensor, Tensor]:
    queries = query if query is not None else query_local
    rows = queries.shape[0]
    return queries.new_empty(rows, topk), queries.new_empty(rows, topk, dtype=torch.int64)


# ---------------------------------------------------------------------------------------------- from distances


@torch.no_grad()
@numpy_in_numpy_out
def k_reciprocal_from_distance(
    query_gallery: Array,
    query_query: Array,
    gallery_gallery: Array,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    variant: str = "zhong2017",
    validate: bool = True,
) -> Array:
    """`k_reciprocal` on given distances, for metrics other than squared Euclidean and DMLI; not differentiable.

    The distances are taken as they are. The published program passes squared Euclidean ones.

    Args:
        query_gallery: (M, N) float tensor or NumPy array of distances, 0 or more.
        query_query: (M, M), same dtype and device.
        gallery_gallery: (N, N), same dtype and device.
        k1: as in `k_reciprocal`.
        k2: as in `k_reciprocal`.
        lambda_value: as in `k_reciprocal`.
        variant: as in `k_reciprocal`.
        validate: as in `k_reciprocal`.

    Returns:
        (M, N) re-ranked distances in the given dtype; float32 for half precision.

    Raises:
        TypeError: an argument is no float tensor or array, dtypes differ, or k1 or k2 is no integer.
        ValueError: a set is empty, shapes or devices do not fit, k1, k2, lambda_value or variant is out of range, or a
            distance is negative or not finite.

    Source:
        As `k_reciprocal`.

    Example:
        >>> query, gallery = torch.tensor([[0.0]]), torch.tensor([[0.5], [-1.0], [9.0], [-0.5]])
        >>> distances = [(a - b.T).square() for a, b in ((query, gallery), (query, query), (gallery, gallery))]
        >>> k_reciprocal_from_distance(*distances, k1=2, k2=1).argmax(dim=1)
        tensor([2])
    """
    names = ("query_gallery", "query_query", "gallery_gallery")
    check_floats(query_gallery=query_gallery, query_query=query_query, gallery_gallery=gallery_gallery)
    check_shape("query_gallery", query_gallery, ("M", "N"))
    num_query, num_gallery = query_gallery.shape
    like = f"like query_gallery {tuple(query_gallery.shape)}"
    check_shape("query_query", query_query, (num_query, num_query), like=like)
    check_shape("gallery_gallery", gallery_gallery, (num_gallery, num_gallery), like=like)
    k1, k2, lambda_value = _check_settings(k1, k2, lambda_value, variant, num_query + num_gallery)
    check_kernel("k_reciprocal_from_distance", query_gallery)
    tensors = widen(query_gallery, query_query, gallery_gallery)
    if checks_values(query_gallery, validate):
        check_finite(**dict(zip(names, tensors, strict=True)))
        check_not_negative(**dict(zip(names, tensors, strict=True)))
    return torch.ops.reidops.k_reciprocal_from_distance(*tensors, k1, k2, lambda_value, variant)


@torch.library.register_fake("reidops::k_reciprocal_from_distance")
def _k_reciprocal_from_distance_fake(
    query_gallery: Tensor,
    query_query: Tensor,
    gallery_gallery: Tensor,
    k1: int,
    k2: int,
    lambda_value: float,
    variant: str,
) -> Tensor:
    return query_gallery.new_empty(query_gallery.shape)
