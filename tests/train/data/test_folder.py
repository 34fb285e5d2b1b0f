"""One's own images, in every layout."""

import os

import pytest

from train.data import load_dataset


def rows(samples):
    return [(os.path.basename(sample.path), sample.identity, sample.camera) for sample in samples]


def test_train_and_test_by_file_name(tmp_path, make_images):
    make_images(tmp_path / "images" / "train", "car_0002_cam1.jpg", "car_0002_cam2.jpg", "bus_0001_cam2.jpg")
    make_images(tmp_path / "images" / "test", "car_0002_cam1.jpg", "car_0002_cam2.jpg", "van_0001_cam2.jpg")
    (tmp_path / "test.txt").write_text("a list that is passed over")
    data = load_dataset("folder", tmp_path)
    assert rows(data.train) == [("bus_0001_cam2.jpg", 0, 2), ("car_0002_cam1.jpg", 1, 1), ("car_0002_cam2.jpg", 1, 2)]
    assert rows(data.query) == [("car_0002_cam1.jpg", 2, 1)]  # the same name in the test is another vehicle
    assert rows(data.gallery) == [("car_0002_cam2.jpg", 2, 2), ("van_0001_cam2.jpg", 3, 2)]
    assert load_dataset("folder", tmp_path / "images") == data


def test_chosen_query_camera(tmp_path, make_images):
    make_images(tmp_path / "test", *(f"{name}_c{camera}.jpg" for name in "ab" for camera in (1, 2, 3)))
    assert {sample.camera for sample in load_dataset("folder", tmp_path).query} == {1}
    data = load_dataset("folder", tmp_path, query_camera=2)
    assert {sample.camera for sample in data.query} == {2}
    assert {sample.camera for sample in data.gallery} == {1, 3}
    with pytest.raises(ValueError, match=r"query_camera should be one of \[1, 2, 3\].*got 9"):
        load_dataset("folder", tmp_path, query_camera=9)


def test_explicit_query_and_gallery(tmp_path, make_images):
    make_images(tmp_path / "train", "a_c1.jpg", "a_c2.jpg")
    make_images(tmp_path / "query", "b_c2.jpg")
    make_images(tmp_path / "gallery", "b_c1.jpg", "c_c1.jpg")
    data = load_dataset("folder", tmp_path)
    assert rows(data.query) == [("b_c2.jpg", 1, 2)]
    assert rows(data.gallery) == [("b_c1.jpg", 1, 1), ("c_c1.jpg", 2, 1)]


def test_a_folder_an_identity(tmp_path, make_images):
    make_images(tmp_path / "train", "anna/1_cam1.png", "anna/2_cam2.png", "ben/cam1_x.png")
    make_images(tmp_path / "test", "cleo/1_cam1.png", "cleo/2_cam2.png")
    data = load_dataset("folder", tmp_path)
    assert rows(data.train) == [("1_cam1.png", 0, 1), ("2_cam2.png", 0, 2), ("cam1_x.png", 1, 1)]
    assert rows(data.query) == [("1_cam1.png", 2, 1)] and rows(data.gallery) == [("2_cam2.png", 2, 2)]


def test_without_cameras_the_first_image_is_the_query(tmp_path, make_images):
    make_images(tmp_path / "test", "anna/a.png", "anna/b.png", "anna/c.png", "ben/a.png", "ben/b.png")
    data = load_dataset("folder", tmp_path)
    assert data.train == []
    assert rows(data.query) == [("a.png", 0, 0), ("a.png", 1, 0)]
    assert rows(data.gallery) == [("b.png", 0, 1), ("c.png", 0, 1), ("b.png", 1, 1)]
    with pytest.raises(ValueError, match="query_camera is 1, but no image"):
        load_dataset("folder", tmp_path, query_camera=1)


def test_unseparated_identities_are_split(tmp_path, make_images):
    make_images(tmp_path, *(f"p{number:02d}_cam{camera}.jpg" for number in range(10) for camera in (1, 2)))
    data = load_dataset("folder", tmp_path)
    train = {name[:3] for name, _, _ in rows(data.train)}
    test = {name[:3] for name, _, _ in rows(data.query + data.gallery)}
    assert len(train) == 5 and len(test) == 5 and not train & test
    assert {sample.identity for sample in data.train} == set(range(5))
    assert data == load_dataset("folder", tmp_path)
    assert any(load_dataset("folder", tmp_path, seed=seed) != data for seed in range(1, 5))
    whole = load_dataset("folder", tmp_path, train_fraction=0)
    assert whole.train == [] and len(whole.query) == len(whole.gallery) == 10
    with pytest.raises(ValueError, match="train_fraction should be"):
        load_dataset("folder", tmp_path, train_fraction=1)
    with pytest.raises(ValueError, match="seed should be at least 0, got -1"):
        load_dataset("folder", tmp_path, seed=-1)


def test_own_pattern(tmp_path, make_images):
    make_images(tmp_path / "test", "1-anna.jpg", "2-anna.jpg", "2-ben.jpg", "1-ben.jpg")
    data = load_dataset("folder", tmp_path, pattern=r"(?P<camera>\d)-(?P<identity>\w+)\.")
    assert rows(data.query) == [("1-anna.jpg", 0, 1), ("1-ben.jpg", 1, 1)]
    with pytest.raises(ValueError, match="pattern should be a regular expression"):
        load_dataset("folder", tmp_path, pattern="(")
    with pytest.raises(ValueError, match="pattern should have a group"):
        load_dataset("folder", tmp_path, pattern="(.*)")


def test_own_pattern_without_cameras(tmp_path, make_images):
    make_images(tmp_path, "anna-1.jpg", "anna-2.png", "ben-1.jpg", "ben-2.jpg")
    data = load_dataset("folder", tmp_path, pattern=r"(?P<identity>\w+)-", train_fraction=0)
    assert rows(data.query) == [("anna-1.jpg", 0, 0), ("ben-1.jpg", 1, 0)]
    assert rows(data.gallery) == [("anna-2.png", 0, 1), ("ben-2.jpg", 1, 1)]


def test_own_pattern_without_cameras_in_folders_of_identities(tmp_path, make_images):
    """Names that seem to tell cameras, some of them, tell none."""
    make_images(tmp_path / "test", "anna/1_cam1.png", "anna/2_cam2.png", "ben/1_cam7.png", "ben/other.png")
    with pytest.raises(ValueError, match="other.png' names no camera, .* --pattern without a camera group, such as '"):
        load_dataset("folder", tmp_path)
    data = load_dataset("folder", tmp_path, pattern="(?P<identity>.+?)_")
    assert rows(data.query) == [("1_cam1.png", 0, 0), ("1_cam7.png", 1, 0)]
    assert rows(data.gallery) == [("2_cam2.png", 0, 1), ("other.png", 1, 1)]


def test_other_files_are_passed_over(tmp_path, make_images):
    make_images(tmp_path / "test", "anna/1_cam1.jpg", "anna/2_cam2.jpg")
    expected = load_dataset("folder", tmp_path)
    for name in (
        "anna/._1_cam1.jpg",
        "anna/Thumbs.db",
        "Thumbs.db",
        ".DS_Store",
        ".cache/1_cam1.jpg",
        "__MACOSX/._1.jpg",
    ):
        (tmp_path / "test" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "test" / name).write_bytes(b"x")
    assert load_dataset("folder", tmp_path) == expected


def test_market_names_and_junk(tmp_path, make_images):
    make_images(tmp_path / "test", "0003_c1s1_000001_00.jpg", "0003_c2s1_000001_00.jpg", "-1_c2s1_000001_00.jpg")
    data = load_dataset("folder", tmp_path)
    assert rows(data.query + data.gallery) == [("0003_c1s1_000001_00.jpg", 0, 1), ("0003_c2s1_000001_00.jpg", 0, 2)]


def test_errors_name_the_place(tmp_path, make_images):
    with pytest.raises(ValueError, match="holds no image"):
        load_dataset("folder", tmp_path)
    make_images(tmp_path / "a" / "test", "a_cam1.jpg", "strange.jpg")
    with pytest.raises(ValueError, match=r"strange.jpg' tells no identity: .*; give --pattern, or"):
        load_dataset("folder", tmp_path / "a")
    make_images(tmp_path / "b" / "test", "x/a_cam1.jpg", "x/strange.jpg")
    with pytest.raises(ValueError, match=r"strange.jpg' names no camera, but 1 other"):
        load_dataset("folder", tmp_path / "b")
    make_images(tmp_path / "c" / "query", "a_cam1.jpg")
    with pytest.raises(FileNotFoundError, match="lacks the folder gallery/"):
        load_dataset("folder", tmp_path / "c")
    make_images(tmp_path / "d" / "test", "a_cam1.jpg", "b_cam1.jpg")
    with pytest.raises(ValueError, match="leaves the gallery empty"):
        load_dataset("folder", tmp_path / "d")
    with pytest.raises(ValueError, match="root should be a folder"):
        load_dataset("folder", tmp_path / "d" / "test" / "a_cam1.jpg")


def test_images_beside_folders_of_images_are_refused(tmp_path, make_images):
    make_images(tmp_path / "test", "a_cam1.jpg", "a_cam2.jpg", "ben/1_cam1.jpg", "ben/2_cam2.jpg")
    with pytest.raises(ValueError, match="not both, got 'a_cam1.jpg' beside 'ben/1_cam1.jpg'"):
        load_dataset("folder", tmp_path)


def test_digits_are_those_of_ascii(tmp_path, make_images):
    make_images(tmp_path / "test", "a_cam1.jpg", "a_cam٢.jpg")
    with pytest.raises(ValueError, match="a_cam٢.jpg' tells no identity"):
        load_dataset("folder", tmp_path)
    with pytest.raises(ValueError, match="a_cam٢.jpg' should be a number, got '٢'"):
        load_dataset("folder", tmp_path, pattern=r"(?P<identity>\w+?)_cam(?P<camera>\d+)")


def test_query_without_match_warns(tmp_path, make_images):
    make_images(tmp_path / "test", "a_cam1.jpg", "b_cam1.jpg", "b_cam2.jpg")
    with pytest.warns(UserWarning, match="^1 query identity has no image in the gallery"):
        load_dataset("folder", tmp_path)


def test_real_vehicles(data_folder):
    data = load_dataset("folder", "vehicle_reid")
    assert (len(data.train), data.num_train_identities) == (1014, 507)
    assert {sample.camera for sample in data.train} == {1, 2}
    assert len(data.query) == len(data.gallery) == 60
    assert {sample.camera for sample in data.query} == {1} and {sample.camera for sample in data.gallery} == {2}
    assert {sample.identity for sample in data.query} == {sample.identity for sample in data.gallery}
    assert not {sample.identity for sample in data.query} & {sample.identity for sample in data.train}
    for query, found in zip(data.query, data.gallery, strict=True):  # both sorted by name
        assert query.path.replace("cam1", "cam2") == found.path and query.identity == found.identity
