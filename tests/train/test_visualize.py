"""What the pictures are made of: which images are nearest, which pair is shown; and that files are whole."""

import pytest
import torch
from PIL import Image

from reidops import shortest_path_indices
from train.features import Features
from train.visualize import draw_alignment, nearest, telling_pair


def make_features(**changes):
    fields = {
        "query": torch.zeros(1, 2), "gallery": torch.zeros(5, 2),
        "query_ids": torch.tensor([7]), "gallery_ids": torch.tensor([7, 7, 3, -1, 7]),
        "query_cameras": torch.tensor([1]), "gallery_cameras": torch.tensor([1, 2, 1, 2, 3]),
    }  # fmt: skip
    return Features(**fields | changes)


def test_nearest_drops_what_the_protocol_drops():
    distance = torch.tensor([[0.0, 0.4, 0.3, 0.1, 0.5]])
    names = [f"g{i}.jpg" for i in range(5)]
    query, found = nearest(make_features(), distance, 0, ["q.jpg"], names, count=10)
    assert query == "q.jpg"
    assert [(name, right) for name, right, _ in found] == [("g2.jpg", False), ("g1.jpg", True), ("g4.jpg", True)]
    assert [d for *_, d in found] == pytest.approx([0.3, 0.4, 0.5])
    assert len(nearest(make_features(), distance, 0, ["q.jpg"], names, count=2)[1]) == 2


def test_telling_pair_is_the_shifted_one_of_the_same_identity():
    stripes = torch.eye(4)
    shifted = stripes[[0, 0, 1, 2]]
    gallery = torch.stack([shifted, stripes, shifted, shifted, shifted])
    features = make_features(query_local=stripes[None], gallery_local=gallery)
    assert telling_pair(features) == (0, 4)  # rows 0, 2 and 3 are as shifted, but same camera, other identity, junk
    features.gallery_ids[4] = 3
    assert telling_pair(features) == (0, 1)
    with pytest.raises(ValueError, match="no local features"):
        telling_pair(make_features())
    features.gallery_ids[:] = 3
    with pytest.raises(ValueError, match="no pair of one identity"):
        telling_pair(features)


def test_telling_pair_looks_at_queries_that_have_a_match():
    stripes = torch.eye(4)
    features = make_features(
        query=torch.zeros(3, 2), query_ids=torch.tensor([5, 6, 7]), query_cameras=torch.tensor([1, 1, 1]),
        query_local=stripes.expand(3, 4, 4), gallery_local=stripes[[0, 0, 1, 2]].expand(5, 4, 4),
    )  # fmt: skip
    assert telling_pair(features, limit=1) == (2, 1)


def test_alignment_marks_the_cells_of_the_path(tmp_path):
    """The brightest contrast: a path along the top row and down the last column, marked in the accent colour."""
    for name in ("a", "b"):
        Image.new("RGB", (32, 64), "grey").save(tmp_path / f"{name}.png")
    query, gallery = torch.eye(4)[[0, 1, 2, 3]], torch.eye(4)[[1, 2, 3, 3]]
    distance = torch.tanh(torch.cdist(query, gallery) / 2)
    assert len(shortest_path_indices(distance)) == 7
    draw_alignment(
        tmp_path / "alignment.png", tmp_path / "a.png", tmp_path / "b.png", query, gallery, (64, 32), "title"
    )
    with Image.open(tmp_path / "alignment.png") as picture:
        colors = picture.convert("RGB").getcolors(2**24)
    accent = sum(count for count, color in colors if color == (0xF4, 0xA2, 0x59))
    assert accent > 500
    assert list(tmp_path.glob("*.part")) == []
