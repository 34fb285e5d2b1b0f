"""What others do: the idioms of published programs, written again after the papers, in PyTorch and NumPy.

Each computes what our operator computes, but for what its docstring says. PyTorch ones run on any device.
"""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
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


def faiss_index(gallery: np.ndarray) -> Any:
    """faiss's exact index of the gallery, filled, on as many threads as torch has."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(gallery.shape[1])
    index.add(gallery)
    return index


def faiss_knn(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same without an index."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss.knn(query, gallery, k)


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
    distance = torch.baddbmm(lengths, x, y.mT, alpha=-2).clamp(min=1e-12).sqrt()
    growth = distance.exp()
    return shortest_path(((growth - 1) / (growth + 1)).permute(1, 2, 0), torch.minimum)


def dmli_matrix_torch(x: Tensor, y: Tensor, queries_at_once: int = 64) -> Tensor:
    """DMLI of all pairs, (M, m, d), (N, n, d) -> (M, N), some queries at once as all stripe distances do not fit."""
    return torch.cat([_dmli_all_pairs(some, y) for some in x.split(queries_at_once)])


def _dmli_all_pairs(x: Tensor, y: Tensor) -> Tensor:
    distance = squared_distance(x.flatten(0, 1), y.flatten(0, 1)).clamp_(min=1e-12).sqrt_()
    growth = distance.exp_()
    cost = (growth - 1).div_(growth.add_(1)).view(*x.shape[:2], *y.shape[:2])
    return shortest_path(cost.permute(1, 3, 0, 2), torch.minimum)


def dmli_matrix_numpy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same in NumPy, on the processor."""
    rows, columns = x.reshape(-1, x.shape[2]), y.reshape(-1, y.shape[2])
    growth = rows @ columns.T
    growth *= -2
    growth += (rows**2).sum(1)[:, None]
    growth += (columns**2).sum(1)
    np.maximum(growth, 0, out=growth)
    np.exp(np.sqrt(growth, out=growth), out=growth)
    cost = growth - 1
    growth += 1
    cost /= growth
    return shortest_path(cost.reshape(*x.shape[:2], *y.shape[:2]).transpose(1, 3, 0, 2), np.minimum)


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


def k_reciprocal_numpy(
    query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, lambda_value: float = 0.3
) -> np.ndarray:
    """k-reciprocal encoding as the published NumPy program has it: dense T x T matrices, float16 weights.

    An image's weights are looked up only where they are not 0, by lists of the rows that have any in a column.
    """
    images = np.concatenate([query, gallery])
    total, num_query = len(images), len(query)
    distance = images @ images.T
    distance *= -2
    lengths = (images**2).sum(1)
    distance += lengths[:, None]
    distance += lengths
    np.maximum(distance, 0, out=distance)
    distance /= distance.max(axis=1, keepdims=True)
    ranking = np.argsort(distance, axis=1)
    near = ranking[:, : k1 + 1].copy()
    half = near[:, : int(np.around(k1 / 2)) + 1]

    def reciprocal(near: np.ndarray, i: int) -> np.ndarray:
        ahead = near[i]
        return ahead[(near[ahead] == i).any(axis=1)]

    weights = np.zeros((total, total), dtype=np.float16)
    for i in range(total):
        own = reciprocal(near, i)
        members, chosen = set(own.tolist()), set(own.tolist())
        for candidate in own:
            others = reciprocal(half, candidate).tolist()
            if len(members.intersection(others)) > 2 / 3 * len(others):
                chosen.update(others)
        columns = np.fromiter(chosen, dtype=np.int64, count=len(chosen))
        weight = np.exp(-distance[i, columns])
        weights[i, columns] = weight / weight.sum()
    if k2 > 1:
        weights = np.stack([weights[some].mean(axis=0) for some in ranking[:, :k2]])
    del ranking

    columns = np.ascontiguousarray(weights.T)
    filled = [np.flatnonzero(column) for column in columns]
    jaccard = np.empty((num_query, total - num_query), dtype=np.float16)
    for i in range(num_query):
        shared = np.zeros(total, dtype=np.float16)
        for column in np.flatnonzero(weights[i]):
            rows = filled[column]
            shared[rows] += np.minimum(weights[i, column], columns[column, rows])
        jaccard[i] = (1 - shared / (2 - shared))[num_query:]
    return jaccard * (1 - lambda_value) + distance[:num_query, num_query:] * lambda_value


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


def torchreid_evaluation(
    distance: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray, query_cameras: np.ndarray,
    gallery_cameras: np.ndarray,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """CMC (50,) and mAP by torchreid's Cython program; the module is looked for as torchreid's and on the path."""
    cython = rank_cy()
    cmc, mean_ap = cython.evaluate_cy(distance, query_ids, gallery_ids, query_cameras, gallery_cameras, 50)
    return np.asarray(cmc), float(mean_ap)


@functools.cache
def rank_cy() -> Any:
    """torchreid's compiled evaluation, without the packages that importing the whole of torchreid needs."""
    package = importlib.util.find_spec("torchreid")
    for folder in package.submodule_search_locations or [] if package else []:
        for path in Path(folder).rglob("rank_cy*.so"):
            spec = importlib.util.spec_from_file_location("rank_cy", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    try:
        return importlib.import_module("rank_cy")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("no torchreid", name="torchreid with its Cython module") from None


def torchmetrics_mean_ap(
    distance: Tensor, query_ids: Tensor, gallery_ids: Tensor, query_cameras: Tensor, gallery_cameras: Tensor
) -> Tensor:
    """mAP alone, one query after another, as that is what torchmetrics has; images to leave out are taken out first."""
    from torchmetrics.functional.retrieval import retrieval_average_precision

    found = []
    score = distance.max() + 1 - distance  # it takes positive scores, the largest first
    for row, person, camera in zip(score, query_ids, query_cameras, strict=True):
        match = gallery_ids == person
        kept = ~(match & (gallery_cameras == camera))
        match = match[kept]
        if match.any():
            found.append(retrieval_average_precision(row[kept], match))
    return torch.stack(found).mean()


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
    """The triplet step of AlignedReID's program: boolean indexing of the matrix, so as many images of each person.

    The indices of what was chosen are looked up too, as local features are taken by them.
    """
    count = len(labels)
    lengths = features.pow(2).sum(1, keepdim=True).expand(count, count)
    distance = (lengths + lengths.T).addmm_(features, features.T, alpha=-2).clamp(min=1e-12).sqrt()
    across = labels.expand(count, count)
    same, other = across.eq(across.T), across.ne(across.T)
    positive, positive_place = distance[same].contiguous().view(count, -1).max(1, keepdim=True)
    negative, negative_place = distance[other].contiguous().view(count, -1).min(1, keepdim=True)
    index = torch.arange(count, device=labels.device).expand(count, count)
    index[same].contiguous().view(count, -1).gather(1, positive_place)
    index[other].contiguous().view(count, -1).gather(1, negative_place)
    return positive.squeeze(1), negative.squeeze(1)


def triplets_by_slices(features: Tensor, images_each: int) -> tuple[Tensor, Tensor]:
    """The triplet step of MuDeep's program: all differences at once, (B, B, d), and a slice for every person.

    Images of a person stand together, as many of each. The program divides features by their norm first; not here, as
    the others do not.
    """
    count = len(features)
    shape = count, count, features.shape[1]
    difference = features.unsqueeze(1).expand(shape) - features.unsqueeze(0).expand(shape)
    distance = ((difference**2).sum(2) + 1e-8).sqrt()
    positive, negative = [], []
    for start in range(0, count, images_each):
        end = start + images_each
        positive.append(distance[start:end, start:end])
        negative.append(torch.cat([distance[start:end, :start], distance[start:end, end:]], dim=1))
    return torch.cat(positive).max(1).values, torch.cat(negative).min(1).values


# ---------------------------------------------------------------------------------------------- attention


def bmm_softmax_bmm(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.bmm(torch.bmm(query, key.mT).softmax(-1), value)


def averages_of_parts(maps: Tensor) -> Tensor:
    """Of three horizontal parts: (batch, channels, length) -> (batch, channels, 3)."""
    return maps.unflatten(2, (3, -1)).mean(3)


def averages_of_attended(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The published order: attention to the whole map, whose parts are averaged then."""
    return lambda query, key, value: averages_of_parts(attend(query, key, value))


def attended_averages(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same result from attention to the parts' averages."""
    return lambda query, key, value: attend(query, key, averages_of_parts(value))


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
