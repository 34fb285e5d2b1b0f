"""What others do: the idioms of published programs, written again after the papers, in PyTorch and NumPy.

Each computes what our operator computes, but for what its docstring says. PyTorch ones run on any device.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

# ---------------------------------------------------------------------------------------------- distances


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """(M, d), (N, d) -> (M, N) as |x|^2 + |y|^2 - 2 x y, the usual way."""
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(lengths, x, y.T, alpha=-2).clamp_(min=0)


def cdist_topk(query: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return torch.cdist(query, gallery).topk(k, dim=1, largest=False)


def matrix_topk(query: Tensor, gallery: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return squared_distance(query, gallery).topk(k, dim=1, largest=False)


def shortest_path(cost: Any, minimum: Callable) -> Any:
    """(m, n, ...) -> (...), one operation of the framework for each step of each cell."""
    m, n = cost.shape[:2]
    reached = [[None] * n for _ in range(m)]
    for i in range(m):
        for j in range(n):
            if i and j:
                reached[i][j] = minimum(reached[i - 1][j], reached[i][j - 1]) + cost[i, j]
            elif i or j:
                reached[i][j] = (reached[i - 1][j] if i else reached[i][j - 1]) + cost[i, j]
            else:
                reached[i][j] = cost[i, j]
    return reached[-1][-1]


def dmli_torch(x: Tensor, y: Tensor) -> Tensor:
    """DMLI of pairs, (B, m, d), (B, n, d) -> (B,), for training: a batched product, exp, and the path cell by cell."""
    lengths = x.square().sum(2, keepdim=True) + y.square().sum(2).unsqueeze(1)
    distance = (lengths - 2 * torch.bmm(x, y.mT)).clamp(min=1e-12).sqrt()
    growth = distance.exp()
    return shortest_path(((growth - 1) / (growth + 1)).permute(1, 2, 0), torch.minimum)


def dmli_matrix_torch(x: Tensor, y: Tensor, queries_at_once: int = 64) -> Tensor:
    """DMLI of all pairs, (M, m, d), (N, n, d) -> (M, N), some queries at once as all stripe distances do not fit."""
    return torch.cat([_dmli_all_pairs(some, y) for some in x.split(queries_at_once)])


def _dmli_all_pairs(x: Tensor, y: Tensor) -> Tensor:
    distance = squared_distance(x.flatten(0, 1), y.flatten(0, 1)).clamp_(min=1e-12).sqrt_()
    growth = distance.exp()
    cost = ((growth - 1) / (growth + 1)).view(*x.shape[:2], *y.shape[:2])
    return shortest_path(cost.permute(1, 3, 0, 2), torch.minimum)


def dmli_matrix_numpy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same in NumPy, on the processor."""
    rows, columns = x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])
    squared = (rows**2).sum(1)[:, None] + (columns**2).sum(1) - 2 * rows @ columns.T
    growth = np.exp(np.sqrt(np.maximum(squared, 0)))
    cost = ((growth - 1) / (growth + 1)).reshape(*x.shape[:2], *y.shape[:2])
    return shortest_path(cost.transpose(1, 3, 0, 2), np.minimum)


# ---------------------------------------------------------------------------------------------- re-ranking


def gnn_reranking(
    query: Tensor, gallery: Tensor, k1: int = 26, k2: int = 7, dtype: torch.dtype | None = None
) -> Tensor:
    """Re-ranking by propagation on the neighbour graph, with dense T x T matrices; arXiv:2012.07620.

    Another method than k-reciprocal encoding, of about the same quality, made for GPUs. `dtype` of the T x T node
    features; None takes the images'.
    """
    images = functional.normalize(torch.cat([query, gallery]), dim=1)
    total = len(images)
    neighbours = [(some @ images.T).topk(min(k1, total), dim=1) for some in images.split(8192)]
    similarity = torch.cat([values for values, _ in neighbours])
    index = torch.cat([indices for _, indices in neighbours])
    nodes = torch.zeros(total, total, device=images.device, dtype=dtype or images.dtype)
    nodes.scatter_(1, index, 1)
    edges = similarity[:, :k2].square().to(nodes.dtype)
    for _ in range(2):
        symmetric = nodes + nodes.T
        for rows, edge, near in zip(nodes.split(8192), edges.split(8192), index.split(8192), strict=True):
            rows.zero_()
            for j in range(min(k2, total)):
                rows.addcmul_(symmetric[near[:, j]], edge[:, j : j + 1])
            rows.div_(rows.norm(dim=1, keepdim=True))
    return 1 - nodes[: len(query)] @ nodes[len(query) :].T


def k_reciprocal_numpy(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """k-reciprocal encoding by the published NumPy program's dense T x T matrices, features to result."""
    from tests.reidops.published import k_reciprocal_float16

    images = np.concatenate([query, gallery])
    lengths = (images**2).sum(1)
    distance = np.maximum(lengths[:, None] + lengths - 2 * images @ images.T, 0)
    return k_reciprocal_float16(distance, len(query), 20, 6, 0.3)


# ---------------------------------------------------------------------------------------------- scores


def rank_metrics_torch(
    distance: Tensor, query_ids: Tensor, gallery_ids: Tensor, query_cameras: Tensor, gallery_cameras: Tensor
) -> tuple[Tensor, Tensor]:
    """CMC (50,) and average precision (M,) from whole sorted rows, 1,024 queries at once."""
    first, precision = [], []
    for chosen in torch.arange(len(distance), device=distance.device).split(1024):
        order = distance[chosen].argsort(dim=1)
        ids, cameras = gallery_ids[order], gallery_cameras[order]
        match = ids == query_ids[chosen, None]
        kept = ~(match & (cameras == query_cameras[chosen, None])) & (ids != -1)
        match &= kept
        hits = match.cumsum(1)
        found = hits[:, -1]
        rank = kept.cumsum(1)
        precision.append((match * hits / rank.clamp(min=1)).sum(1) / found)  # NaN where nothing is to be found
        first.append(torch.where(match, rank, distance.shape[1] + 1).amin(1)[found > 0])
    ranks = torch.arange(1, min(50, distance.shape[1]) + 1, device=distance.device)
    return (torch.cat(first)[:, None] <= ranks).double().mean(0), torch.cat(precision)


def rank_metrics_numpy(
    distance: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """CMC (50,) and mAP, sorted at once and then query by query, as in the published evaluation programs."""
    order = np.argsort(distance, axis=1)
    matches = gallery_ids[order] == query_ids[:, None]
    ranks = np.arange(min(50, distance.shape[1]))
    cmc, precision = [], []
    for q in range(len(distance)):
        same_camera = gallery_cameras[order[q]] == query_cameras[q]
        hits = matches[q][~(matches[q] & same_camera)].astype(np.int32)
        if not hits.any():
            continue
        found = hits.cumsum()
        cmc.append(ranks >= hits.argmax())
        precision.append((found / np.arange(1, len(hits) + 1) * hits).sum() / hits.sum())
    return np.mean(cmc, axis=0), float(np.mean(precision))


# ---------------------------------------------------------------------------------------------- mining

try:
    from pytorch_metric_learning import distances, miners
except ImportError:
    metric_learning_note = "the package is not here: the same maths in PyTorch"

    def metric_learning_batch_hard(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative distances: a mask and a masked copy of the matrix for each, then both looked up."""
        distance = torch.cdist(features, features)
        matrix = distance.detach()
        same = labels[:, None] == labels
        positive = matrix.masked_fill(~same, -torch.inf).max(1).indices
        negative = matrix.masked_fill(same, torch.inf).min(1).indices
        anchors = torch.where(same.any(1) & ~same.all(1))[0]
        return distance[anchors, positive[anchors]], distance[anchors, negative[anchors]]

else:
    metric_learning_note = "the package"

    def metric_learning_batch_hard(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positive and negative distances by the package's miner and distance."""
        measure = distances.LpDistance(normalize_embeddings=False)
        anchors, positive, negative = miners.BatchHardMiner(distance=measure)(features, labels)
        distance = measure(features)
        return distance[anchors, positive], distance[anchors, negative]


def hard_example_mining(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same by boolean indexing of the matrix, which needs as many images of every person."""
    distance = squared_distance(features, features).clamp(min=1e-12).sqrt()
    same = labels.expand(len(labels), len(labels)).eq(labels[:, None])
    positive = distance[same].contiguous().view(len(labels), -1).max(1).values
    negative = distance[~same].contiguous().view(len(labels), -1).min(1).values
    return positive, negative


# ---------------------------------------------------------------------------------------------- attention


def bmm_softmax_bmm(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(query, key.mT).softmax(-1), value)


def scaled_dot_product_attention(backend: SDPBackend | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """torch's own attention with one head, unscaled, by the named backend; None lets torch choose."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = [tensor.unsqueeze(1) for tensor in (query, key, value)]
        with contextlib.nullcontext() if backend is None else sdpa_kernel([backend]):
            return functional.scaled_dot_product_attention(*heads, scale=1.0).squeeze(1)

    return attend


def chosen_backend(query: Tensor, key: Tensor, value: Tensor) -> str:
    """Which backend torch chooses for these tensors."""
    heads = [tensor.unsqueeze(1) for tensor in (query, key, value)]
    return SDPBackend(torch._fused_sdp_choice(*heads, scale=1.0)).name.lower()
