"""Largest relative error of distances at every precision: python precision_results.py FILE, under REIDOPS_SIMD."""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.reidops.inputs import random  # noqa: E402

# rows on the left and right, depth: around the panels' widths, beyond a block of columns, beyond one of the depth
SHAPES = [
    (1, 1, 1),
    (1, 17, 31),
    (16, 16, 32),
    (17, 33, 33),
    (40, 3, 70),
    (300, 530, 129),
    (33, 1030, 600),
    (9, 40, 2049),
]


def errors(precision):
    """By operator: the largest relative error over all shapes, against the definition in float64."""
    import reidops
    from reidops import reference

    worst = {"knn": 0.0, "knn, far from the origin": 0.0, "dmli_matrix": 0.0, "batch_hard": 0.0}
    for m, n, d in SHAPES:
        for name, shift in (("knn", 0.0), ("knn, far from the origin", 30.0)):
            x, y = random(m, d) + shift, random(n, d, seed=1) + shift
            found = reidops.knn(x, y, n, precision=precision)
            exact = reference.euclidean_distance(x, y, squared=True).gather(1, found.index)
            worst[name] = max(worst[name], ((found.distance - exact).abs() / exact).max().item())
        x, y = random(m, 3, d) / d**0.5, random(n, 2, d, seed=1) / d**0.5
        exact = reference.dmli_matrix(x, y)
        found = reidops.dmli_matrix(x, y, precision=precision)
        worst["dmli_matrix"] = max(worst["dmli_matrix"], ((found - exact).abs() / exact).max().item())
    x = random(600, 64)
    found = reidops.batch_hard(x, torch.arange(600) // 4, precision=precision)
    exact = reference.batch_hard(x, torch.arange(600) // 4)
    worst["batch_hard"] = max(((a - b).abs() / b).max().item() for a, b in zip(found[:2], exact[:2], strict=True))
    return worst


if __name__ == "__main__":
    found = {precision: errors(precision) for precision in ("highest", "high", "medium")}
    Path(sys.argv[1]).write_text(json.dumps(found))
