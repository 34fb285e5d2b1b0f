"""The official counts, and the warning where a folder has others."""

import pytest
from scipy.io import loadmat

from train.data import ReIDDataset, Sample, load_dataset
from train.data.counts import OFFICIAL, Counts


def made_of(counts, official):
    """A data set with these counts, and the official ones it is held to."""
    subsets = {
        subset: [Sample(f"{index}.jpg", index % identities, 1) for index in range(images)]
        for subset, (identities, images) in counts.items()
    }
    return ReIDDataset("some", official=official, **subsets)


WHOLE = {  # as the papers have them: identities and images of train, query and gallery
    "market1501": ((751, 12_936), (750, 3_368), (751, 15_913)),
    "dukemtmcreid": ((702, 16_522), (702, 2_228), (1_110, 17_661)),
    "msmt17": ((1_041, 32_621), (3_060, 11_659), (3_060, 82_161)),
    "msmt17 --without-validation": ((1_041, 30_248), (3_060, 11_659), (3_060, 82_161)),
    "cuhk03": ((767, 7_365), (700, 1_400), (700, 5_332)),
    "cuhk03 --cuhk03-labeled": ((767, 7_368), (700, 1_400), (700, 5_328)),
}
SAME = {
    "market1501_partial": "market1501", "dukemtmcreid_partial": "dukemtmcreid",
    "cuhk03np_detected": "cuhk03", "cuhk03np_labeled": "cuhk03 --cuhk03-labeled",
}  # fmt: skip


def test_the_numbers_are_the_published_ones():
    expected = WHOLE | {name: WHOLE[same] for name, same in SAME.items()}
    assert OFFICIAL == {
        name: dict(zip(("train", "query", "gallery"), numbers, strict=True)) for name, numbers in expected.items()
    }


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_cuhk03_in_market1501s_layout_is_held_to_them(boxes, tmp_path, make_images):
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        make_images(tmp_path / "cuhk03-np" / boxes / folder, "0001_c1.jpg" if "train" in folder else "0002_c1.jpg")
    train = {"detected": "7,365", "labeled": "7,368"}[boxes]
    summary = load_dataset("cuhk03", tmp_path, cuhk03_labeled=boxes == "labeled").summary()
    assert f"train has 1 ids and 1 images (official: 767 and {train})" in summary


def test_nothing_is_said_of_a_whole_set():
    official = {"train": Counts(3, 12), "query": Counts(2, 5), "gallery": Counts(2, 9)}
    data = made_of(official, official)
    assert data.counts() == official and data.count_warning() is None and len(data.summary().splitlines()) == 6


def test_one_line_names_every_difference():
    official = {"train": Counts(3, 1_200), "query": Counts(2, 5), "gallery": Counts(2, 9)}
    data = made_of(official | {"train": Counts(3, 1_199), "gallery": Counts(1, 9)}, official)
    *table, warning = data.summary().splitlines()
    assert len(table) == 6
    assert warning == (
        "warning: not the official counts of some: train has 3 ids and 1,199 images (official: 3 and 1,200), "
        "gallery has 1 ids and 9 images (official: 2 and 9)"
    )


def test_unknown_counts_are_not_held_to_any(synthetic, tmp_path, make_images):
    assert load_dataset("synthetic", synthetic).count_warning() is None
    make_images(tmp_path / "own" / "test", "a_cam1.jpg", "a_cam2.jpg")
    assert load_dataset("folder", tmp_path / "own").count_warning() is None


@pytest.mark.parametrize("name", [
    "market1501", "market1501_partial", "dukemtmcreid", "dukemtmcreid_partial", "cuhk03np_detected", "cuhk03np_labeled",
])  # fmt: skip
def test_each_set_is_held_to_its_own(name, tmp_path, make_images):
    home = tmp_path / ("detected" if name == "cuhk03np_detected" else "labeled" if "cuhk" in name else name)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        make_images(home / folder, "0001_c1.jpg" if folder == "bounding_box_train" else "0002_c1.jpg")
    data = load_dataset(name, tmp_path)
    assert data.official == OFFICIAL[name]
    assert f"train has 1 ids and 1 images (official: {OFFICIAL[name]['train'].identities}" in data.summary()


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_counts_of_the_new_protocol(data_folder, boxes):
    lists = loadmat(data_folder / "protocols" / f"cuhk03_new_protocol_config_{boxes}.mat")
    for subset, counts in OFFICIAL[f"cuhk03np_{boxes}"].items():
        rows = lists[f"{subset}_idx"].ravel() - 1
        assert Counts(len(set(lists["labels"].ravel()[rows].tolist())), len(rows)) == counts
