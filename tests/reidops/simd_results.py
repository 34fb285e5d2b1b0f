"""Runs every CPU operator on seeded inputs and saves the results: python simd_results.py FILE, under REIDOPS_SIMD."""

import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.reidops.inputs import clustered, gradients, integers, random  # noqa: E402


def results(ops, dtype):
    """Name -> array of every operator of `ops`, reidops or reidops.reference, at sizes around the vectors' widths."""
    found = {}
    for width in (1, 3, 8, 17, 33, 130):
        x, y = random(19, width, dtype=dtype), random(37, width, seed=1, dtype=dtype)
        found[f"euclidean {width}"] = ops.euclidean_distance(x, y)
        found[f"knn {width}"] = ops.knn(x, y, 5).distance
        mined = ops.batch_hard(x, integers(19, high=4))
        found[f"batch_hard {width}"] = torch.stack(mined[:2])
        stripes_x, stripes_y = (random(9, 5, width, seed=s, dtype=dtype) / width**0.5 for s in range(2))
        found[f"dmli {width}"] = ops.dmli(stripes_x, stripes_y)
        found[f"dmli_matrix {width}"] = ops.dmli_matrix(stripes_x, stripes_y)
        found[f"dmli_matrix unaligned {width}"] = ops.dmli_matrix(stripes_x, stripes_y, aligned=False)
        attention = [random(2, width, 9, seed=s, dtype=dtype) / 3 for s in range(3)]
        found[f"channel_attention {width}"] = ops.channel_attention(*attention)
        averages = [*attention[:2], random(2, width, 3, seed=2, dtype=dtype)]
        found[f"channel_attention averages {width}"] = ops.channel_attention(*averages)
        if width > 1:  # a softmax of one channel is constant
            grads = gradients(ops.channel_attention, *averages)
            found |= {f"channel_attention averages {width}, gradient {i}": grad for i, grad in enumerate(grads)}
    distance, identities = (4 * random(5, 1300, dtype=dtype).abs()).round(), integers(1300, high=60)
    for protocol in ("market1501", "mudeep", "cuhk03"):
        for name, matches in (("few", identities), ("many", identities % 3)):
            scores = ops.rank_metrics(distance, torch.arange(5) % 3, matches, protocol=protocol, num_draws=3)
            found[f"rank_metrics {protocol} {name}"] = scores.average_precision
    found["shortest_path"] = ops.shortest_path(random(21, 6, 9, dtype=dtype).abs())
    features = clustered(40, 12, clusters=5, dtype=dtype)
    found["k_reciprocal"] = ops.k_reciprocal(features[:10], features[10:], k1=6, k2=3)
    return {name: values.numpy() for name, values in found.items()}


if __name__ == "__main__":
    import reidops

    saved = {
        f"{dtype} {name}": values
        for dtype in ("float32", "float64")
        for name, values in results(reidops, getattr(torch, dtype)).items()
    }
    np.savez(sys.argv[1], simd=reidops.build_info()["simd"], **saved)
