"""The table: every row against the definitions, feature files, and the published figures of a real network."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from reidops import reference
from train import evaluate as script
from train.evaluate import TABLE, chosen_distances, evaluate, format_table
from train.features import Features, load_features, save_features


@pytest.fixture
def features():
    """Ten people before three cameras, with noise enough that no row is perfect."""
    torch.manual_seed(1)
    identities = torch.arange(10).repeat_interleave(6)
    cameras = torch.arange(60) % 3
    centres, stripes = torch.randn(10, 16), torch.randn(10, 4, 6)
    query = torch.arange(60) % 6 == 0
    ids = identities.masked_fill((torch.arange(60) % 11 == 5) & ~query, -1)
    features = centres[identities] + 1.3 * torch.randn(60, 16)
    local = functional.normalize(stripes[identities] + 1.5 * torch.randn(60, 4, 6), dim=2)
    return Features(
        features[query], features[~query], ids[query], ids[~query], cameras[query], cameras[~query],
        local[query], local[~query],
    )  # fmt: skip


def reference_distance(f, name, first, second):
    x, y = (functional.normalize(getattr(f, side).double(), dim=1) for side in (first, second))
    local = [getattr(f, f"{side}_local") for side in (first, second)]
    total = torch.zeros(len(x), len(y), dtype=torch.float64)
    if "global" in name:
        total += reference.euclidean_distance(x, y, squared=True)
    if "dmli" in name or "local" in name:
        total += reference.dmli_matrix(*local, aligned="dmli" in name)
    return total


@pytest.mark.parametrize("reranking", [False, True])
@pytest.mark.parametrize("name", ["global", "local", "dmli", "global_local", "global_dmli"])
def test_rows_are_those_of_the_definition(features, name, reranking):
    *plain, last = evaluate(features.normalized(), [name], reranking=reranking, k1=7, k2=3, lambda_value=0.4)
    assert len(plain) == reranking
    assert (last.distance, last.reranking) == (name, reranking)
    pairs = ("query", "gallery"), ("query", "query"), ("gallery", "gallery")
    between, *inner = (reference_distance(features, name, *pair) for pair in pairs)
    if reranking:
        between = reference.k_reciprocal_from_distance(between, *inner, k1=7, k2=3, lambda_value=0.4)
    expected = reference.rank_metrics(
        between, features.query_ids, features.gallery_ids, features.query_cameras, features.gallery_cameras
    )
    row = last.row()
    assert [row[f"rank{k}"] for k in (1, 5, 10)] == pytest.approx([float(expected.cmc[k - 1]) for k in (1, 5, 10)])
    assert row["mAP"] == pytest.approx(float(expected.mean_ap), abs=1e-9)
    assert row["mINP"] == pytest.approx(float(expected.mean_inp), abs=1e-9)
    assert 0.2 < row["mAP"] < 0.99


def test_the_whole_table(features):
    evaluations = evaluate(features.normalized(), k1=7, k2=3)
    assert [(e.distance, e.reranking) for e in evaluations] == [(name, r) for name in TABLE for r in (False, True)]
    lines = format_table(evaluations).splitlines()
    assert len(lines) == 2 + 8
    assert lines[2].split()[:2] == ["Global", "-"]
    assert lines[9].split()[:2] == ["Global+DMLI", "k-reciprocal"]
    assert lines[2].split()[2] == f"{100 * evaluations[0].rank(1):.1f}"


@pytest.mark.parametrize(
    ("choice", "unaligned", "rows"),
    [
        ("global", False, ("global",)),
        ("local", False, ("dmli",)),
        ("local", True, ("local",)),
        ("global_local", False, ("global_dmli",)),
        ("global_local", True, ("global_local",)),
        ("dmli", True, ("dmli",)),
        ("global_dmli", False, ("global_dmli",)),
        ("all", False, TABLE),
    ],
)
def test_published_words(choice, unaligned, rows):
    assert chosen_distances(choice, unaligned) == rows


def test_too_few_images_or_features(features):
    with pytest.raises(ValueError, match="k1=60 needs at least 61 images, .*, and there are 60"):
        evaluate(features, ["global"], k1=60)
    features.query_local = features.gallery_local = None
    with pytest.raises(ValueError, match="dmli need local features"):
        evaluate(features, ["global", "dmli"], reranking=False)


# ------------------------------------------------------------------------------------------- feature files


def test_feature_files_keep_everything(features, tmp_path):
    save_features(features, tmp_path / "new" / "features.npz")
    again = load_features(tmp_path / "new" / "features.npz")
    for name, tensor in vars(features).items():
        assert torch.equal(getattr(again, name), tensor), name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["features.npz"]


def write_npz(path, **changes):
    arrays = {
        "query_features": np.random.rand(3, 4), "query_ids": np.arange(3), "query_cameras": np.zeros(3, int),
        "gallery_features": np.random.rand(5, 4), "gallery_ids": np.arange(5), "gallery_cameras": np.ones(5, int),
    }  # fmt: skip
    np.savez(path, **{name: array for name, array in {**arrays, **changes}.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_ids": None, "gallery_cameras": None}, "lacks query_ids, gallery_cameras; it holds query_features"),
        ({"gallery_ids": np.arange(4)}, r"gallery_ids should .* as many rows .* \(5, .*got shape \(4,\)"),
        ({"query_features": np.random.rand(3)}, "query_features should have 2 dimensions"),
        ({"query_features": np.random.rand(3, 2)}, r"query_features \(3, 2\) and .* \(5, 4\) should agree"),
        ({"query_ids": np.random.rand(3)}, "query_ids should hold integers, got float64"),
        ({"query_local_features": np.random.rand(3, 2, 4)}, "lacks gallery_local_features"),
        ({"query_features": np.array([{}], dtype=object)}, "not an .npz file of plain arrays"),
    ],
)  # fmt: skip
def test_bad_feature_files(tmp_path, capsys, changes, message):
    path = tmp_path / "features.npz"
    write_npz(path, **changes)
    with pytest.raises(ValueError, match=message):
        load_features(path)
    with pytest.raises(SystemExit) as caught:
        script.main(["--features", str(path)])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_not_a_feature_file(tmp_path, content):
    path = tmp_path / "features.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="features.npz is not an .npz file"):
        load_features(path)


def test_command_line_writes_the_rows(features, tmp_path, capsys):
    save_features(features, tmp_path / "features.npz")
    argv = ["--features", str(tmp_path / "features.npz"), "--output", str(tmp_path / "rows" / "rows.json")]
    results = script.main([*argv, "--k1", "7", "--k2", "3"])
    assert json.loads((tmp_path / "rows" / "rows.json").read_text()) == results
    expected = evaluate(features.normalized(), k1=7, k2=3)
    assert results["rows"] == [evaluation.row() for evaluation in expected]
    assert "Global+DMLI   k-reciprocal" in capsys.readouterr().out

    raw = script.main([*argv, "--no-normalize", "--no-reranking", "--test-distance", "global"])
    assert raw["rows"] == [evaluate(features, ["global"], reranking=False)[0].row()]
    assert raw["rows"] != results["rows"][:1]


def test_published_figures_of_a_real_network(data_folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # a relative name is looked for under REIDOPS_DATA
    plain, again = script.main(["--features", "market1501_features.npz"])["rows"]
    assert (round(100 * plain["rank1"], 1), round(100 * plain["mAP"], 1)) == (86.1, 59.8)
    assert again["reranking"]
    assert again["mAP"] > plain["mAP"] + 0.1
    assert again["rank1"] > plain["rank1"]
