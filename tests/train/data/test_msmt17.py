"""MSMT17's two layouts and its lists."""

import os
from argparse import ArgumentParser, Namespace

import pytest

from train.data import load_dataset, msmt17, read_image
from train.data.msmt17 import LISTS
from train.script import add_data_flags, read_dataset

LAYOUTS = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}
LISTED = {
    "list_train.txt": [
        ("0001/0001_045_12_0303morning_0006_2.jpg", 1), ("0000/0000_046_12_0303morning_0006_2_ex.jpg", 0),
    ],
    "list_val.txt": [("0003/0003_013_04_0303morning_0020_2.jpg", 3)],
    "list_query.txt": [("0000/0000_000_01_0303morning_0015_0.jpg", 0), ("0205/0205_006_05_0303noon_1525_10.jpg", 205)],
    "list_gallery.txt": [
        ("0000/0000_008_15_0303afternoon_0019_2.jpg", 0), ("0205/0205_021_02_0114noon_1620_10.jpg", 205),
    ],
}  # fmt: skip


@pytest.fixture(params=LAYOUTS)
def home(request, tmp_path, make_images):
    """The data set's inner folder, in each of its layouts."""
    home = tmp_path / "data" / "msmt17" / request.param
    for name, rows in LISTED.items():
        make_images(images_of(home, name), *(path for path, _ in rows))
        (home / name).write_text("".join(f"{path} {identity}\n" for path, identity in rows))
    return home


def images_of(home, name):
    return home / LAYOUTS[home.name][name in ("list_query.txt", "list_gallery.txt")]


def rows(samples):
    return [(os.path.basename(sample.path), sample.identity, sample.camera) for sample in samples]


def test_reads_the_lists(home):
    data = load_dataset("msmt17", home)
    assert data.name == "msmt17"
    assert rows(data.train) == [
        ("0001_045_12_0303morning_0006_2.jpg", 1, 12), ("0000_046_12_0303morning_0006_2_ex.jpg", 0, 12),
        ("0003_013_04_0303morning_0020_2.jpg", 2, 4),
    ]  # fmt: skip
    assert rows(data.query) == [
        ("0000_000_01_0303morning_0015_0.jpg", 0, 1), ("0205_006_05_0303noon_1525_10.jpg", 205, 5),
    ]  # fmt: skip
    assert rows(data.gallery) == [
        ("0000_008_15_0303afternoon_0019_2.jpg", 0, 15), ("0205_021_02_0114noon_1620_10.jpg", 205, 2),
    ]  # fmt: skip
    for sample in data.train + data.query + data.gallery:
        assert read_image(sample.path).size == (4, 8)


def test_a_list_that_an_editor_marked_as_utf8(home):
    expected = load_dataset("msmt17", home)
    for name in LISTS:
        (home / name).write_bytes(b"\xef\xbb\xbf" + (home / name).read_bytes())
    assert load_dataset("msmt17", home) == expected


def test_of_both_versions_in_one_folder_the_first(tmp_path, make_images):
    for folder in sum(LAYOUTS.values(), ()):
        make_images(tmp_path / folder, *(path for some in LISTED.values() for path, _ in some))
    for name, some in LISTED.items():
        (tmp_path / name).write_text("".join(f"{path} {identity}\n" for path, identity in some))
    data = load_dataset("msmt17", tmp_path)
    for samples, folder in ((data.train, "train"), (data.query, "test"), (data.gallery, "test")):
        assert {os.path.relpath(sample.path, tmp_path).split(os.sep)[0] for sample in samples} == {folder}


def test_without_the_validation_list(home):
    (home / "list_val.txt").unlink()
    data = load_dataset("msmt17", home, without_validation=True)
    assert [identity for _, identity, _ in rows(data.train)] == [1, 0]
    assert "train has 2 ids and 2 images (official: 1,041 and 30,248)" in data.summary()
    parser = ArgumentParser()
    add_data_flags(parser, 256, 128, 0)
    args = parser.parse_args(["-d", "msmt17", "--root", str(home), "--without-validation"])
    assert read_dataset(Namespace(**vars(args), test_on=[])) == data
    with pytest.raises(FileNotFoundError, match="lacks list_val.txt"):
        load_dataset("msmt17", home)


def test_wherever_root_points(home, tmp_path):
    expected = load_dataset("msmt17", home)
    assert load_dataset("msmt17", home.parent) == load_dataset("msmt17", home.parent.parent) == expected
    moved = home.rename(tmp_path / "data" / home.name)
    by_parent, plain = load_dataset("msmt17", moved.parent), moved.rename(tmp_path / "plain")
    assert rows(by_parent.gallery) == rows(load_dataset("msmt17", plain).gallery) == rows(expected.gallery)


def test_what_is_missing_is_named(home, tmp_path):
    with pytest.raises(FileNotFoundError, match="no msmt17 data set at '.*': wanted list_.*txt beside train/"):
        load_dataset("msmt17", tmp_path)
    gone = images_of(home, "list_gallery.txt") / LISTED["list_gallery.txt"][1][0]
    gone.unlink()
    wanted = f"{home.name}/list_gallery.txt' names 1 image that is not in '.*', the first is 0205/0205_021_02_.*unpack"
    with pytest.raises(FileNotFoundError, match=wanted):
        load_dataset("msmt17", tmp_path / "data")
    for name in LISTS:
        (home / name).unlink()
    with pytest.raises(FileNotFoundError, match="lacks list_train.txt, list_val.txt, list_query.txt, list_gallery.txt"):
        load_dataset("msmt17", tmp_path / "data")


def test_missing_images_folder(home):
    images_of(home, "list_query.txt").rename(home / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"msmt17 at '.*{home.name}' lacks (mask_test_v2|test)/: wanted"):
        load_dataset("msmt17", home)


def test_a_list_that_is_none(home):
    path = home / "list_query.txt"
    path.write_text("\n")
    with pytest.raises(ValueError, match="list_query.txt' names no image"):
        load_dataset("msmt17", home)
    for line in ("0000/0000_000_01_0303morning_0015_0.jpg", "0000/picture.jpg 0", "a b c"):
        path.write_text(f"{LISTED['list_query.txt'][0][0]} 0\n{line}\n")
        with pytest.raises(ValueError, match=f"line 2 of '.*list_query.txt' should be an image .*, got '{line}'"):
            load_dataset("msmt17", home)


def test_official_lists(data_folder, tmp_path, monkeypatch):
    """The official lists, of whose images only the names are there: loading opens none."""
    lists, names = data_folder / "protocols" / "msmt17", {}
    for name in LISTS:
        (tmp_path / name).symlink_to(lists / name)
        images = tmp_path / ("test" if name in ("list_query.txt", "list_gallery.txt") else "train")
        images.mkdir(exist_ok=True)
        for line in (lists / name).read_text().splitlines():
            folder, _, file = line.split()[0].partition("/")
            names.setdefault(f"{images}/{folder}", set()).add(file)
    monkeypatch.setattr(msmt17, "_names_in", lambda folder: names[str(folder)])
    data = load_dataset("msmt17", tmp_path)
    assert (len(data.train), len(data.query), len(data.gallery)) == (32_621, 11_659, 82_161)
    assert data.num_train_identities == 1_041 and data.count_warning() is None
    assert len(msmt17._read_list(tmp_path / "list_train.txt", tmp_path / "train")) == 30_248
    assert {sample.camera for sample in data.gallery} == set(range(1, 16))
