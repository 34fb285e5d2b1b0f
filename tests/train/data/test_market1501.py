"""Market-1501's layout and names."""

import os

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat

from train.data import Sample, load_dataset
from train.data.market1501 import parse_name

TRAIN = ("0007_c3s1_000001_00.jpg", "0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.png", "-1_c1s1_000001_00.jpg")
QUERY = ("0011_c1s1_000001_00.jpg", "0003_c2s1_000001_00.jpg")
GALLERY = ("0011_c2s1_000001_00.jpg", "0003_c5s3_000001_00.jpg", "0000_c6s1_000001_00.jpg", "-1_c4s1_000001_00.jpg")


@pytest.fixture
def market(tmp_path, make_images):
    home = tmp_path / "data" / "market1501"
    make_images(home / "bounding_box_train", *TRAIN)
    make_images(home / "query", *QUERY)
    make_images(home / "bounding_box_test", *GALLERY)
    return home


def by_name(samples):
    return {os.path.basename(sample.path): (sample.identity, sample.camera) for sample in samples}


def test_reads_the_three_subsets(market):
    data = load_dataset("market1501", market.parent)
    assert data.name == "market1501" and data.num_train_identities == 2
    assert by_name(data.train) == {TRAIN[0]: (1, 3), TRAIN[1]: (0, 1), TRAIN[2]: (0, 2)}  # junk gone, 2 and 7 -> 0, 1
    assert by_name(data.query) == {QUERY[0]: (11, 1), QUERY[1]: (3, 2)}
    assert by_name(data.gallery) == {GALLERY[0]: (11, 2), GALLERY[1]: (3, 5), GALLERY[2]: (0, 6)}
    assert all(isinstance(sample, Sample) and os.path.isfile(sample.path) for sample in data.train)


@pytest.mark.parametrize("place", [
    "market1501", "Market-1501-v15.09.15", "Market-1501", "market1501/Market-1501-v15.09.15", "market1501/Market-1501",
])  # fmt: skip
def test_root_may_be_the_set_or_any_folder_above_it(market, tmp_path, place):
    home = tmp_path / "elsewhere" / place
    home.parent.mkdir(parents=True)
    market.rename(home)
    expected = load_dataset("market1501", home)
    assert len(expected.query) == 2 and all(sample.path.startswith(str(home)) for sample in expected.query)
    for root in list(home.parents)[: len(place.split("/"))]:
        assert load_dataset("market1501", root) == expected


@pytest.mark.parametrize(("name", "place"), [
    ("market1501", "Market1501"), ("market1501", "market-1501"), ("market1501", "MARKET_1501/market-1501-v15.09.15"),
    ("dukemtmcreid", "DukeMTMC-reid"), ("dukemtmcreid", "dukemtmcreid/dukemtmc_reid"),
    ("market1501_partial", "market1501-partial"),
])  # fmt: skip
def test_case_and_punctuation_of_a_folder_do_not_matter(market, tmp_path, make_images, name, place):
    home = tmp_path / "elsewhere" / place
    home.parent.mkdir(parents=True)
    market.rename(home)
    data = load_dataset(name, tmp_path / "elsewhere")
    assert len(data.query) == 2 and all(sample.path.startswith(str(home)) for sample in data.query)
    exact = tmp_path / "elsewhere" / name  # a folder of the very name comes first
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        make_images(exact / folder, TRAIN[0] if "train" in folder else GALLERY[0])
    data = load_dataset(name, tmp_path / "elsewhere")
    assert [os.path.dirname(sample.path) for sample in data.query] == [str(exact / "query")]


def test_relative_root_under_the_data_folder(market, monkeypatch, tmp_path):
    monkeypatch.setenv("REIDOPS_DATA", str(tmp_path))
    assert len(load_dataset("market1501", "data").query) == 2


def test_other_files_are_passed_over(market):
    (market / "query" / "Thumbs.db").write_bytes(b"x")
    (market / "query" / ".0001_c1s1_000001_00.jpg").write_bytes(b"x")
    (market / "query" / "._0011_c1s1_000001_00.jpg").write_bytes(b"x")  # macOS keeps a file's attributes in such
    (market / "query" / ".DS_Store").write_bytes(b"x")
    (market / "query" / "readme.txt").write_text("x")
    (market / "query" / "more.jpg").mkdir()
    assert len(load_dataset("market1501", market).query) == 2


@pytest.mark.parametrize("name", ["picture.jpg", "0001_1.jpg", "-2_c1s1_000001_00.jpg", "x0001_c1s1_000001_00.jpg",
                                  "0001_c1garbage.jpg", "0001_c1s1garbage.jpg", "٠٠٠١_c1s1_000001_00.jpg"])  # fmt: skip
def test_bad_name(market, make_images, name):
    make_images(market / "query", name)
    with pytest.raises(ValueError, match=f"in '.*query': '{name}' is not a Market-1501 file name.*0001_c1s1"):
        load_dataset("market1501", market)


def test_parse_name():
    assert parse_name("1501_c6s4_012345_02.jpg") == (1501, 6)
    assert parse_name("0000_c1s1_000151_00.jpg") == (0, 1)
    assert parse_name("0005_c12_f0046985.jpg") == (5, 12)
    assert parse_name("0001_c1.jpg") == parse_name("0001_c1s1.jpg") == (1, 1)


def test_missing_parts(tmp_path, market):
    wanted = (
        "no market1501 data set at '.*': wanted bounding_box_train, query, .* in market1501 or Market-1501-v15.09.15"
    )
    with pytest.raises(FileNotFoundError, match=wanted):
        load_dataset("market1501", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"wanted bounding_box_train.*; python -m train\.data\.partial makes it"
    ):
        load_dataset("dukemtmcreid_partial", tmp_path)
    for path in (market / "query").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="query' holds no image: wanted files like 0001_c1s1"):
        load_dataset("market1501", market)
    (market / "query").rmdir()
    with pytest.raises(FileNotFoundError, match="lacks the folder query/: wanted bounding_box_train, query"):
        load_dataset("market1501", market)


def test_shared_identity_warns(market, make_images):
    make_images(market / "query", "0007_c1s1_000001_00.jpg")
    with pytest.warns(UserWarning, match="1 query identity is also in bounding_box_train"):
        load_dataset("market1501", market)


def test_official_identities_and_cameras(data_folder, tmp_path):
    """The official lists, written as file names (one image, linked), come back as they were."""
    protocol = data_folder / "protocols" / "market1501"

    def official(name, key):
        return loadmat(protocol / name)[key].ravel().astype(int)

    lists = {
        "bounding_box_train": (official("train_label.mat", "label"), official("train_cam.mat", "cam")),
        "query": (official("queryID.mat", "queryID"), official("queryCam.mat", "queryCAM")),
        "bounding_box_test": (official("testID.mat", "testID"), official("testCam.mat", "testCAM")),
    }
    image = tmp_path / "one.jpg"
    Image.new("RGB", (1, 2)).save(image)
    for folder, (identities, cameras) in lists.items():
        (tmp_path / folder).mkdir()
        for index, (identity, camera) in enumerate(zip(identities, cameras, strict=True)):
            name = f"{'-1' if identity < 0 else f'{identity:04d}'}_c{camera}s1_{index:06d}_00.jpg"
            (tmp_path / folder / name).symlink_to(image)
    data = load_dataset("market1501", tmp_path)
    assert (len(data.train), len(data.query), len(data.gallery)) == (12_936, 3_368, 15_913)
    assert data.num_train_identities == 751
    assert len({sample.identity for sample in data.query}) == 750
    assert len({sample.identity for sample in data.gallery}) == 751  # the 750 and the distractors
    assert data.official is not None and data.count_warning() is None
    for samples, folder in ((data.query, "query"), (data.gallery, "bounding_box_test")):
        identities, cameras = lists[folder]
        kept = identities >= 0
        expected = sorted(zip(identities[kept].tolist(), cameras[kept].tolist(), strict=True))
        assert sorted((sample.identity, sample.camera) for sample in samples) == expected
    labels = np.unique(lists["bounding_box_train"][0], return_inverse=True)[1]
    expected = sorted(zip(labels.tolist(), lists["bounding_box_train"][1].tolist(), strict=True))
    assert sorted((sample.identity, sample.camera) for sample in data.train) == expected


@pytest.mark.parametrize(("name", "folder", "names"), [
    ("dukemtmcreid", "dukemtmc-reid/DukeMTMC-reID", ("0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg")),
    ("dukemtmcreid", "DukeMTMC-reID", ("0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg")),
    ("dukemtmcreid", "dukemtmc-reid", ("0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg")),
    ("dukemtmcreid", "dukemtmcreid/DukeMTMC-reID", ("0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg")),
    ("dukemtmcreid_partial", "dukemtmcreid_partial", ("0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg")),
    ("cuhk03np_detected", "cuhk03-np/detected", ("0003_c1_21.png", "0003_c2_26.png")),
    ("cuhk03np_labeled", "CUHK03-NP/labeled", ("0003_c1_21.png", "0003_c2_26.png")),
])  # fmt: skip
def test_sets_in_this_layout_under_their_own_names(tmp_path, make_images, name, folder, names):
    home = tmp_path / folder
    make_images(home / "bounding_box_train", "0001_c1_f0044158.jpg", "0001_c2_f0044158.jpg")
    make_images(home / "query", names[0])
    make_images(home / "bounding_box_test", names[1])
    for root in (tmp_path, home.parent, home):
        data = load_dataset(name, root)
        assert data.name == name
        (query,), (gallery,) = data.query, data.gallery
        assert query.identity == gallery.identity > 0
        assert (query.camera, gallery.camera) == (int(names[0][6]), int(names[1][6]))


def test_a_folder_called_after_another_set_is_refused(market):
    with pytest.raises(ValueError, match="the folder for dukemtmcreid should not be .*market1501', market by its name"):
        load_dataset("dukemtmcreid", market)
    plain = market.rename(market.parent / "people")
    assert load_dataset("dukemtmcreid", plain).query
