"""k-reciprocal encoding the way the published NumPy program computes it, float16 weights included."""

import numpy as np


def k_reciprocal_float16(distance, num_query, k1, k2, lambda_value):
    """Re-ranked (M, N) from the float32 distances of all M + N images; weights and Jaccard distance are float16."""
    distance = distance.astype(np.float32)
    distance = (distance / distance.max(axis=0)).T
    ranking = np.argsort(distance)
    total = len(distance)

    def reciprocal(i, count):
        ahead = ranking[i, :count]
        return [j for j in ahead if i in ranking[j, :count]]

    weights = np.zeros((total, total), dtype=np.float16)
    for i in range(total):
        own = reciprocal(i, k1 + 1)
        chosen = set(own)
        for candidate in own:
            others = reciprocal(candidate, int(np.around(k1 / 2)) + 1)
            if len(set(others) & set(own)) > 2 / 3 * len(others):
                chosen.update(others)
        chosen = sorted(chosen)
        weight = np.exp(-distance[i, chosen])
        weights[i, chosen] = weight / weight.sum()
    if k2 != 1:
        weights = np.stack([weights[ranking[i, :k2]].mean(axis=0) for i in range(total)]).astype(np.float16)

    jaccard = np.zeros((num_query, total), dtype=np.float16)
    for i in range(num_query):
        shared = np.zeros(total, dtype=np.float16)
        for column in np.flatnonzero(weights[i]):
            shared += np.minimum(weights[i, column], weights[:, column])
        jaccard[i] = 1 - shared / (2 - shared)
    return (jaccard * (1 - lambda_value) + distance[:num_query] * lambda_value)[:, num_query:]
