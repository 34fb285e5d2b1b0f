"""Every operator again, slow and plain, in float64: the definition that the compiled kernels are held to.

Names and arguments are those of the public operators. Tensors and NumPy arrays of any floating type are accepted, all
arithmetic is float64 on the CPU, and results are float64 (int64 for indices) tensors. The training operators
(`euclidean_distance`, `shortest_path`, `dmli`, `batch_hard`, `channel_attention`) are written in differentiable
PyTorch, so gradients can be compared as well. Input is taken to be valid: refusing bad input is the public operators'
part. `precision` is accepted where the public operator has it, and has nothing to change here.

Papers:
    AlignedReID      Zhang et al., "AlignedReID: Surpassing Human-Level Performance in Person Re-Identification", 2017.
    AlignedReID++    Luo et al., "AlignedReID++: Dynamically matching local information for person
                     re-identification", Pattern Recognition 94, 2019.
    Batch-hard       Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    k-reciprocal     Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    Market-1501      Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015.
    mINP             Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", 2021.
    MuDeep           Qian et al., "Leader-based Multi-Scale Attention Deep Architecture for Person
                     Re-identification", TPAMI 2020.
"""

import numpy as np
import torch

from .results import BatchHard, Neighbors, RankMetrics


def _float64(values):
    """The values as a float64 tensor on the CPU, still attached to their autograd graph."""
    if not isinstance(values, torch.Tensor):
        values = torch.from_numpy(np.array(values, order="C"))
    return values.to(device="cpu", dtype=torch.float64)


def _integers(values):
    """The labels, identities or cameras as an int64 NumPy array."""
    if isinstance(values, torch.Tensor):
        values = values.cpu().numpy()
    return np.asarray(values).astype(np.int64)


# ---------------------------------------------------------------------------------------------- distances


def _root(squared):
    """Square root whose gradient at 0 is 0, the subgradient that the operators use for identical rows."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def euclidean_distance(x, y, *, squared=False):
    """All distances |x_i - y_j| from the differences themselves: (M, d), (N, d) -> (M, N)."""
    x, y = _float64(x), _float64(y)
    distance = torch.cat([(rows[:, None] - y).square().sum(-1) for rows in x.split(16)])
    return distance if squared else _root(distance)


def _accumulated_cost(cost):
    """Cheapest cost of reaching each cell of (..., m, n), as a list of m lists of n tensors.

    AlignedReID eq. 2: the cost of a cell plus the smaller of what its left and upper neighbours cost to reach. When
    both cost the same the path comes from the left, and the gradient follows that one path.
    """
    m, n = cost.shape[-2:]
    reached = [[None] * n for _ in range(m)]
    for i in range(m):
        for j in range(n):
            here = cost[..., i, j]
            if i and j:
                left, above = reached[i][j - 1], reached[i - 1][j]
                here = here + torch.where(left <= above, left, above)
            elif j:
                here = here + reached[i][j - 1]
            elif i:
                here = here + reached[i - 1][j]
            reached[i][j] = here
    return reached


def shortest_path(cost):
    """Cost of the cheapest path from [0, 0] to [m-1, n-1] that moves right or down: (..., m, n) -> (...)."""
    return _accumulated_cost(_float64(cost))[-1][-1]


def shortest_path_indices(cost):
    """The cells of that path in order, (m, n) -> (m + n - 1, 2), traced back from the end."""
    reached = _accumulated_cost(_float64(cost).detach())
    i, j = len(reached) - 1, len(reached[0]) - 1
    path = [(i, j)]
    while i or j:
        if j and (i == 0 or reached[i][j - 1] <= reached[i - 1][j]):
            j -= 1
        else:
            i -= 1
        path.append((i, j))
    return torch.tensor(path[::-1], dtype=torch.int64)


def _local_distance(cost, aligned):
    """Distance of two images from the distances of their stripes: along the shortest path, or stripe i to stripe i."""
    return shortest_path(cost) if aligned else cost.diagonal(dim1=-2, dim2=-1).sum(-1)


def dmli(x, y, *, aligned=True):
    """Dynamically matched local distance of B pairs, (B, m, d), (B, n, d) -> (B,); AlignedReID++, the DMLI section.

    AlignedReID eq. 1: stripe distances are (e^d - 1) / (e^d + 1) of the Euclidean distance d, which is tanh(d / 2).
    """
    x, y = _float64(x), _float64(y)
    distance = _root((x[:, :, None] - y[:, None]).square().sum(-1))
    return _local_distance(torch.tanh(distance / 2), aligned)


def dmli_matrix(x, y, *, aligned=True, precision=None):
    """`dmli` of every image of x with every image of y: (M, m, d), (N, n, d) -> (M, N)."""
    x, y = _float64(x).detach(), _float64(y).detach()
    (num_x, m, _), (num_y, n, _) = x.shape, y.shape
    distance = euclidean_distance(x.flatten(0, 1), y.flatten(0, 1)).reshape(num_x, m, num_y, n)
    return _local_distance(torch.tanh(distance / 2).permute(0, 2, 1, 3), aligned)


# ---------------------------------------------------------------------------------------------- mining


def batch_hard(features, labels, *, normalize=False):
    """Farthest positive and nearest negative of every anchor, (B, d), (B,); Batch-hard eq. 5.

    `normalize` divides each feature by its Euclidean norm first.
    """
    features = _float64(features)
    if normalize:
        features = features / _root(features.square().sum(1, keepdim=True)).clamp(min=1e-12)
    return batch_hard_from_distance(euclidean_distance(features, features), labels)


def batch_hard_from_distance(distance, labels):
    """The same from given distances (B, B). An anchor is its own positive candidate; ties take the lowest index."""
    distance, labels = _float64(distance), _integers(labels)
    same = labels[:, None] == labels[None, :]
    values = distance.detach().numpy()
    positive = torch.from_numpy(np.where(same, values, -np.inf).argmax(1))  # NumPy's argmax and argmin: first of equals
    negative = torch.from_numpy(np.where(same, np.inf, values).argmin(1))
    anchor = torch.arange(len(labels))
    return BatchHard(distance[anchor, positive], distance[anchor, negative], positive, negative)


# ---------------------------------------------------------------------------------------------- neighbours


def _nearest(distance, k):
    """The k smallest of every row, ascending, equal values by the lowest column."""
    order = torch.from_numpy(np.argsort(distance.numpy(), axis=1, kind="stable")[:, :k].copy())
    return Neighbors(distance.gather(1, order), order)


def knn(query, gallery, k, *, precision=None):
    """The k gallery rows of least squared Euclidean distance to each query, (M, d), (N, d) -> (M, k) twice."""
    return _nearest(euclidean_distance(query, gallery, squared=True).detach(), k)


# ---------------------------------------------------------------------------------------------- re-ranking


def k_reciprocal(
    query,
    gallery,
    *,
    query_local=None,
    gallery_local=None,
    k1=20,
    k2=6,
    lambda_value=0.3,
    variant="zhong2017",
    topk=None,
    precision=None,
):
    """Distances re-ranked by k-reciprocal encoding, (M, N), or the `topk` smallest of every row.

    The original distance is the squared Euclidean one of the features, the DMLI of the local features, or the sum of
    both, among all M + N images.
    """
    distance = 0.0
    if query is not None:
        features = torch.cat([_float64(query), _float64(gallery)]).detach()
        num_query = len(query)
        distance = distance + euclidean_distance(features, features, squared=True)
    if query_local is not None:
        stripes = torch.cat([_float64(query_local), _float64(gallery_local)]).detach()
        num_query = len(query_local)
        distance = distance + dmli_matrix(stripes, stripes)
    result = torch.from_numpy(_rerank(distance.numpy(), num_query, k1, k2, lambda_value, variant))
    return result if topk is None else _nearest(result, topk)


def k_reciprocal_from_distance(
    query_gallery, query_query, gallery_gallery, *, k1=20, k2=6, lambda_value=0.3, variant="zhong2017"
):
    """The same for given distances (M, N), (M, M) and (N, N)."""
    query_gallery = _float64(query_gallery).detach()
    top = torch.cat([_float64(query_query).detach(), query_gallery], dim=1)
    bottom = torch.cat([query_gallery.T, _float64(gallery_gallery).detach()], dim=1)
    distance = torch.cat([top, bottom]).numpy()
    return torch.from_numpy(_rerank(distance, len(query_gallery), k1, k2, lambda_value, variant))


def _reciprocal_sets(order, n):
    """Row i of the (T, T) boolean matrix is R(i, n): the j among the n nearest of i that have i among theirs; eq. 3."""
    near = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(near, order[:, :n], True, axis=1)
    return near & near.T


def _expanded_sets(full, half):
    """R*(i): R(i, n1) joined by R(q, n2) of each member q that shares more than two thirds of it; eq. 4."""
    expanded = full.copy()
    for i, members in enumerate(full):
        for q in np.flatnonzero(members):
            if 3 * np.count_nonzero(half[q] & members) > 2 * np.count_nonzero(half[q]):
                expanded[i] |= half[q]
    return expanded


def _rerank(distance, num_query, k1, k2, lambda_value, variant):
    """k-reciprocal section 3 on a (T, T) matrix whose first `num_query` rows and columns are the queries.

    "torchreid" squares the matrix first. "jaccard" takes k1 neighbours in place of k1 + 1, weighs by the distance
    itself in place of its share of the row's maximum, and leaves the original distance out of the result.
    """
    if variant == "torchreid":
        distance = distance**2
    self_taken = 0 if variant == "jaccard" else 1
    order = np.argsort(distance, axis=1, kind="stable")
    half_size = max(int(np.around(k1 / 2)) + self_taken, 1)
    members = _expanded_sets(_reciprocal_sets(order, k1 + self_taken), _reciprocal_sets(order, half_size))

    farthest = distance.max(axis=1, keepdims=True)
    relative = distance / np.where(farthest > 0, farthest, 1.0)
    exponent = -(distance if variant == "jaccard" else relative)
    exponent = np.where(members, exponent, -np.inf)
    peak = np.where(members.any(axis=1), exponent.max(axis=1), 0.0)[:, None]  # cancels out; keeps exp from vanishing
    weights = np.exp(exponent - peak)  # eq. 7
    total = weights.sum(axis=1, keepdims=True)
    encoding = weights / np.where(total > 0, total, 1.0)

    if k2 > 1:
        encoding = np.stack([encoding[nearest].mean(axis=0) for nearest in order[:, :k2]])  # eq. 11

    shared = np.stack([np.minimum(row, encoding[num_query:]).sum(axis=1) for row in encoding[:num_query]])
    jaccard = 1 - shared / (2 - shared)  # eq. 10, where rows that sum to 1 make the sum of maxima 2 - shared
    if variant == "jaccard":
        return jaccard
    return (1 - lambda_value) * jaccard + lambda_value * relative[:num_query, num_query:]  # eq. 12


# ---------------------------------------------------------------------------------------------- ranking


def rank_metrics(
    distance,
    query_ids,
    gallery_ids,
    query_cameras=None,
    gallery_cameras=None,
    *,
    max_rank=50,
    protocol="market1501",
    num_draws=100,
    seed=0,
):
    """CMC, mAP and mINP of a distance matrix (M, N).

    For each query the gallery is sorted by (distance, index). With cameras, junk (identity -1) and the images of the
    query's identity from its own camera are dropped; without cameras nothing is. "market1501": the step rule for
    average precision, queries without a match left out. "mudeep": the trapezoid rule, such queries count 0. "cuhk03":
    one image of every gallery identity is drawn, `num_draws` times, and the draws' scores are averaged.
    """
    distance = _float64(distance).detach().numpy()
    query_ids, gallery_ids = _integers(query_ids), _integers(gallery_ids)
    length = min(max_rank, distance.shape[1])
    cmc, precision, inverse_penalty, found = [], [], [], []
    for q, identity in enumerate(query_ids):
        kept = np.ones(len(gallery_ids), dtype=bool)
        if query_cameras is not None:
            same_camera = _integers(gallery_cameras) == _integers(query_cameras)[q]
            kept = (gallery_ids != -1) & ~((gallery_ids == identity) & same_camera)
        order = np.argsort(distance[q], kind="stable")
        order = order[kept[order]]
        matches = gallery_ids[order] == identity
        found.append(matches.any())
        if not found[-1]:
            scores = np.zeros(length), 0.0, 0.0
        elif protocol == "cuhk03":
            draws = [_drawn(order, gallery_ids, seed, q, draw) for draw in range(num_draws)]
            scored = [_scores(matches[drawn], length, protocol) for drawn in draws]
            scores = [np.mean(score, axis=0) for score in zip(*scored, strict=True)]
        else:
            scores = _scores(matches, length, protocol)
        for scores_of, score in zip((cmc, precision, inverse_penalty), scores, strict=True):
            scores_of.append(score)
    found, precision = np.array(found), np.array(precision)
    counted = np.ones_like(found) if protocol == "mudeep" else found
    return RankMetrics(
        cmc=torch.from_numpy(np.array(cmc)[counted].mean(axis=0)),
        mean_ap=torch.tensor(precision[counted].mean(), dtype=torch.float64),
        mean_inp=torch.tensor(np.array(inverse_penalty)[counted].mean(), dtype=torch.float64),
        num_valid=torch.tensor(int(found.sum())),
        average_precision=torch.from_numpy(np.where(counted, precision, np.nan)),
    )


def _scores(matches, length, protocol):
    """CMC of the given length, average precision and inverse negative penalty of one ranked list of booleans."""
    ranks = np.flatnonzero(matches) + 1.0
    count = np.arange(1, len(ranks) + 1)
    at_match = count / ranks
    if protocol == "mudeep":
        before = np.where(ranks > 1, (count - 1) / np.maximum(ranks - 1, 1), 1.0)
        average_precision = np.mean((before + at_match) / 2)
    else:
        average_precision = np.mean(at_match)
    return (np.arange(1, length + 1) >= ranks[0]).astype(float), average_precision, len(ranks) / ranks[-1]


def _drawn(order, gallery_ids, seed, query, draw):
    """Booleans over `order` that keep one image of each identity, the same ones for every backend."""
    keep = np.zeros(len(order), dtype=bool)
    for identity in np.unique(gallery_ids[order]):
        places = np.flatnonzero(gallery_ids[order] == identity)
        places = places[np.argsort(order[places])]  # images count in gallery order, whatever their distances
        keep[places[((_mix(seed, query, draw, int(identity)) >> 32) * len(places)) >> 32]] = True
    return keep


def _mix(*values):
    """A 64-bit random number that depends on nothing but the values: the splitmix64 finaliser, chained."""
    state = 0
    for value in values:
        z = ((state ^ (value % 2**64)) + 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        state = z ^ (z >> 31)
    return state


# ---------------------------------------------------------------------------------------------- attention


def channel_attention(query, key, value):
    """softmax(query key^T) value over channels, unscaled: (B, C, L) x 2, (B, C, V) -> (B, C, V); MuDeep's attention."""
    query, key, value = _float64(query), _float64(key), _float64(value)
    return torch.softmax(query @ key.transpose(1, 2), dim=-1) @ value
