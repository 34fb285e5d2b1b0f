"""The table: every row against the definitions, feature files, and the published figures of a real network."""

import io
import json
import zipfile

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


@pytest.mark.parametrize("protocol", ["cuhk03", "mudeep"])
def test_rows_by_other_protocols(features, tmp_path, capsys, protocol):
    usual, row = evaluate(features, ["global"], reranking=False, protocols=("market1501", protocol))
    labels = features.query_ids, features.gallery_ids, features.query_cameras, features.gallery_cameras
    distance = reference.euclidean_distance(features.query.double(), features.gallery.double(), squared=True)
    expected = reference.rank_metrics(distance, *labels, protocol=protocol, num_draws=100, seed=0)
    assert [row.rank(k) for k in (1, 5, 10)] == pytest.approx([float(expected.cmc[k - 1]) for k in (1, 5, 10)])
    assert (row.mean_ap, row.mean_inp) == pytest.approx((float(expected.mean_ap), float(expected.mean_inp)), abs=1e-9)
    assert row.mean_ap != usual.mean_ap
    if protocol == "cuhk03":  # one match a draw: both are 1 / rank
        assert row.mean_ap == pytest.approx(row.mean_inp)

    save_features(features, tmp_path / "features.npz")
    argv = ["--features", str(tmp_path / "features.npz"), "--no-normalize", "--no-reranking", "--protocol", protocol]
    results = script.main([*argv, "--test-distance", "global", "--output", str(tmp_path / "rows.json")])
    assert results["rows"] == json.loads((tmp_path / "rows.json").read_text())["rows"] == [row.row()]
    head, _, line = capsys.readouterr().out.splitlines()[1:4]
    assert head.split()[:3] == ["Distance", "Re-ranking", "Protocol"]
    assert line.split()[:4] == ["Global", "-", protocol, f"{100 * row.rank(1):.1f}"]


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
        ({"gallery_ids": np.arange(4)}, r"gallery_ids should .* as many rows .*got shape \(4,\) and 5 rows"),
        ({"query_features": np.float32(1)}, r"query_features should have 2 dimensions .*got shape \(\) and no rows"),
        ({"query_cameras": np.int64(1)}, r"query_cameras should have 1 dimensions .*got shape \(\) and 3 rows"),
        ({"query_features": np.empty((3, 0))}, r"query_features should .* not be empty, got shape \(3, 0\)"),
        ({"query_features": np.random.rand(3)}, "query_features should have 2 dimensions"),
        ({"query_features": np.random.rand(3, 2)}, r"query_features \(3, 2\) and .* \(5, 4\) should agree"),
        ({"query_ids": np.random.rand(3)}, "query_ids should hold integers, got float64"),
        ({"query_local_features": np.random.rand(3, 2, 4)}, "lacks gallery_local_features"),
        ({"query_features": np.array([{}], dtype=object)}, "query_features cannot be read: Object arrays"),
        ({"query_features": np.ones((3, 4), complex)}, "query_features should hold real numbers, got complex128"),
        ({"query_features": np.ones((3, 4), bool)}, "query_features should hold real numbers, got bool"),
        ({"gallery_features": np.ones((5, 4), "U3")}, "gallery_features should hold real numbers, got <U3"),
        ({"gallery_features": np.ones((5, 4), "M8[s]")}, r"gallery_features should hold real .*, got datetime64\[s\]"),
        ({"query_features": np.where(np.eye(3, 4), np.nan, 1)}, r"query_features should .* .*got nan at \(0, 0\)"),
        ({"query_features": np.eye(3, 4)[::-1] * 1e39}, r"query_features should .*, got 1e\+39 at \(0, 2\)"),
        ({"query_local_features": np.ones((3, 2, 4)), "gallery_local_features": np.full((5, 2, 4), -np.inf)},
         r"gallery_local_features should hold finite .*, got -inf at \(0, 0, 0\)"),
        ({"query_ids": np.array([1, 2, 2**63], np.uint64)}, "query_ids should .* 64 bits .*, got 9223372036854775808"),
        ({"query_cameras": np.ones(3, bool)}, "query_cameras should hold integers, got bool"),
    ],
)  # fmt: skip
def test_bad_feature_files(tmp_path, capsys, changes, message):
    path = tmp_path / "features.npz"
    write_npz(path, **changes)
    with pytest.raises(ValueError, match=f"features.npz:? {message}"):
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


def test_a_single_array_is_no_feature_file(tmp_path):
    np.save(tmp_path / "features.npy", np.ones((3, 4)))
    with pytest.raises(ValueError, match="features.npy is not an .npz file: it holds a single array"):
        load_features(tmp_path / "features.npy")


def test_every_flipped_byte_is_a_line_that_names_the_file(tmp_path):
    path, damaged, refused = tmp_path / "features.npz", tmp_path / "damaged.npz", 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("query_features", "query_ids", "query_cameras", "gallery_features", "gallery_ids"):
            buffer = io.BytesIO()
            np.save(buffer, np.ones((3, 4)) if name.endswith("features") else np.arange(3))
            archive.writestr(f"{name}.npy", buffer.getvalue())
        archive.writestr("gallery_cameras", "no array")
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="features.npz: gallery_cameras cannot be read: it is no array"):
        load_features(path)
    for position in range(len(whole)):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="damaged.npz") as caught:
            load_features(damaged)
        assert "\n" not in str(caught.value)
        refused += "query_ids cannot be read" in str(caught.value)
    assert refused


def test_other_arrays_and_whole_number_types_are_taken(tmp_path):
    write_npz(tmp_path / "features.npz", names=np.array([{}], dtype=object), query_features=np.eye(3, 4, dtype=">i2"),
              query_ids=np.array([1, 2, 2**63 - 1], np.uint64))  # fmt: skip
    features = load_features(tmp_path / "features.npz")
    assert torch.equal(features.query, torch.eye(3, 4))
    assert features.query_ids.tolist() == [1, 2, 2**63 - 1]


@pytest.mark.parametrize(
    ("output", "message"),
    [(".", "should be a file, got the folder"), ("features.npz/x.json", "features.npz' is a file"),
     ("features.npz/a/x.json", "features.npz/a")],
)  # fmt: skip
def test_output_is_seen_to_before_the_work(features, tmp_path, monkeypatch, capsys, output, message):
    save_features(features, tmp_path / "features.npz")
    monkeypatch.setattr(script, "load_features", lambda path: pytest.fail("the work began"))
    with pytest.raises(SystemExit) as caught:
        script.main(["--features", str(tmp_path / "features.npz"), "--output", str(tmp_path / output)])
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and line.startswith("error: ") and message in line


def test_a_failure_to_write_is_a_line(features, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError("no space left")

    save_features(features, tmp_path / "features.npz")
    monkeypatch.setattr(script, "write_json", full)
    argv = ["--features", str(tmp_path / "features.npz"), "--output", str(tmp_path / "rows.json")]
    with pytest.raises(SystemExit):
        script.main([*argv, "--no-reranking"])
    assert capsys.readouterr().err == "error: no space left\n"


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
