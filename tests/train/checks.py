"""What several tests ask of results and pictures."""

import numpy as np
from PIL import Image

from train.evaluate import TABLE

KEYS = {"distance", "reranking", "protocol", "rank1", "rank5", "rank10", "mAP", "mINP"}


def scores(rows):
    """What a table shows of its rows, whatever model and data set they are of."""
    return [{name: row[name] for name in sorted(KEYS)} for row in rows]


def assert_table(rows):
    """The eight rows of the papers' table in their order, with fractions in them."""
    assert [(row["distance"], row["reranking"]) for row in rows] == [(d, r) for d in TABLE for r in (False, True)]
    assert all(KEYS <= set(row) for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in KEYS - {"distance", "reranking", "protocol"})


def assert_picture(path):
    """A readable image of some size with something on it."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 10
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
