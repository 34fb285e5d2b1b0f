"""CUHK03 from its .mat, from extracted images and from Market-1501's layout; its splits, its official counts."""

import json
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from tests.train.data.cuhk03_files import EMPTY, TEST_SETS, draw_images, write_config, write_mat
from train import alignedreid
from train.data import cuhk03, load_dataset
from train.data.files import one_at_a_time

CONFIG = "cuhk03_new_protocol_config_{}.mat"
CLASSIC = {"cuhk03_classic_split": True}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder as one has it after following the published instructions."""
    home = tmp_path_factory.mktemp("original") / "cuhk03"
    for boxes, images in write_mat(home / "cuhk03_release" / "cuhk-03.mat").items():
        write_config(home / CONFIG.format(boxes), list(images))
    return home


@pytest.fixture
def home(original, tmp_path):
    return shutil.copytree(original, tmp_path / "data" / "cuhk03")


@pytest.fixture
def extracted(original, tmp_path):
    """Images alone, as the published programs leave them: no .mat, no note of ours."""
    home = tmp_path / "data" / "cuhk03"
    for boxes in ("detected", "labeled"):
        folder = home / f"images_{boxes}"
        folder.mkdir(parents=True)
        for name, pixels in draw_images(boxes).items():
            Image.fromarray(pixels).save(folder / name)
    return home


def names_of(samples):
    return [sample.path.replace("\\", "/").rsplit("/", 1)[1] for sample in samples]


def identity_of(name):
    return 1000 * int(name[0]) + int(name[2:5])


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_extraction_gives_just_the_images_of_the_file(home, boxes):
    load_dataset("cuhk03", home.parent, cuhk03_labeled=boxes == "labeled")
    expected = draw_images(boxes)
    folder = home / f"images_{boxes}"
    assert {path.name for path in folder.iterdir()} == {*expected, "extracted.json"}
    for name, pixels in expected.items():
        with Image.open(folder / name) as image:
            assert np.array_equal(np.asarray(image), pixels), name
    assert not {f"1_002_2_{index:02d}.png" for index in EMPTY[1, 2]} & set(expected)
    assert sorted(path.name for path in home.iterdir() if path.name.startswith("images_")) == [folder.name]


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_the_new_protocol(home, tmp_path, boxes):
    data = load_dataset("cuhk03", home.parent, cuhk03_labeled=boxes == "labeled")
    expected = write_config(tmp_path / "again.mat", list(draw_images(boxes)))
    for subset in ("train", "query", "gallery"):
        assert names_of(getattr(data, subset)) == expected[subset]  # in the order of the file
        assert [sample.camera for sample in getattr(data, subset)] == [int(name[6]) for name in expected[subset]]
    for subset in ("query", "gallery"):
        assert [sample.identity for sample in getattr(data, subset)] == list(map(identity_of, expected[subset]))
    numbers = sorted({identity_of(name) for name in expected["train"]})
    assert [sample.identity for sample in data.train] == [numbers.index(identity_of(n)) for n in expected["train"]]
    assert data.name == ("cuhk03 --cuhk03-labeled" if boxes == "labeled" else "cuhk03")


def assert_classic(data, split_id):
    people = {1000 * pair + person for pair, person in TEST_SETS[split_id]}
    expected = sorted(name for name in draw_images("detected") if identity_of(name) in people)
    assert names_of(data.query) == names_of(data.gallery) == expected
    assert names_of(data.train) == sorted(set(draw_images("detected")) - set(expected))
    assert {sample.identity for sample in data.train} == set(range(7))
    assert data.name == f"cuhk03 --cuhk03-classic-split --split-id {split_id}"


def test_the_classic_splits(home):
    for split_id in range(20):
        assert_classic(load_dataset("cuhk03", home, split_id=split_id, **CLASSIC), split_id)
    (home / "cuhk03_release" / "cuhk-03.mat").unlink()  # the splits are kept with the images
    assert_classic(load_dataset("cuhk03", home, split_id=19, **CLASSIC), 19)


def write_published(path, subsets):
    """A split as the published programs write it: with the paths of another machine, and identities counted anew."""
    splits = [{s: [[f"data/cuhk03/images/{name}", 0, 1] for name in names] for s, names in subset.items()}
              for subset in subsets]  # fmt: skip
    path.write_text(json.dumps(splits))


def test_images_and_splits_of_the_published_programs(extracted, tmp_path):
    names = list(draw_images("detected"))
    new = write_config(tmp_path / "any.mat", names)
    write_published(extracted / "splits_new_detected.json", [new])
    data = load_dataset("cuhk03", extracted.parent)
    assert [names_of(subset) for subset in (data.train, data.query, data.gallery)] == list(new.values())
    classic = []
    for people in TEST_SETS[:3]:
        test = [name for name in names if [int(name[0]), int(name[2:5])] in people]
        classic.append({"train": sorted(set(names) - set(test)), "query": test, "gallery": test})
    write_published(extracted / "splits_classic_detected.json", classic)
    for split_id in range(3):
        assert_classic(load_dataset("cuhk03", extracted, split_id=split_id, **CLASSIC), split_id)
    with pytest.raises(ValueError, match="split_id should be below 3, the splits in '.*classic_detected.json', got 3"):
        load_dataset("cuhk03", extracted, split_id=3, **CLASSIC)


def test_images_of_others_with_the_published_mat_files(extracted, original):
    shutil.copytree(original / "cuhk03_release", extracted / "cuhk03_release")
    assert_classic(load_dataset("cuhk03", extracted, split_id=2, **CLASSIC), 2)
    assert not (extracted / "images_detected" / "extracted.json").exists()  # they are taken as they are
    shutil.copy(original / CONFIG.format("detected"), extracted / "cuhk03_release")
    assert load_dataset("cuhk03", extracted).query


def test_the_new_protocol_in_market1501s_layout(tmp_path, make_images, monkeypatch):
    for boxes, camera in (("detected", 1), ("labeled", 2)):
        home = tmp_path / "cuhk03-np" / boxes
        make_images(home / "bounding_box_train", "0001_c1_1.png")
        make_images(home / "query", f"0003_c{camera}_21.png")
        make_images(home / "bounding_box_test", f"0003_c{3 - camera}_26.png")
        for root in (tmp_path, home.parent, home):
            data = load_dataset("cuhk03", root, cuhk03_labeled=boxes == "labeled")
            assert (data.query[0].identity, data.query[0].camera) == (3, camera)
            assert data.name == "cuhk03" + (" --cuhk03-labeled" if boxes == "labeled" else "")
        other = {"detected": "labeled", "labeled": "detected"}[boxes]
        monkeypatch.chdir(home)
        for root in (home, "."):
            with pytest.raises(ValueError, match=f"that of another data set, got .*, {boxes} by its name"):
                load_dataset("cuhk03", root, cuhk03_labeled=other == "labeled")
            with pytest.raises(ValueError, match=f"folder for cuhk03np_{other} should not .*, {boxes} by its name"):
                load_dataset(f"cuhk03np_{other}", root)
    with pytest.raises(FileNotFoundError, match="cuhk-03.mat or cuhk03/images_detected/; the classic splits need one"):
        load_dataset("cuhk03", tmp_path, **CLASSIC)


# ------------------------------------------------------------------------------------------- the official lists


@pytest.mark.parametrize("boxes", ["detected", "labeled"])
def test_official_counts(data_folder, tmp_path, boxes):
    """The real configuration on files of its names: the official counts, and every label and camera as it has them."""
    path = data_folder / "protocols" / CONFIG.format(boxes)
    content = loadmat(path)
    names = [name.item() for name in content["filelist"].ravel()]
    folder = tmp_path / "cuhk03" / f"images_{boxes}"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).touch()
    (tmp_path / "cuhk03" / path.name).symlink_to(path)
    data = load_dataset("cuhk03", tmp_path, cuhk03_labeled=boxes == "labeled")
    gallery = {"detected": 5_332, "labeled": 5_328}[boxes]
    assert data.counts() == {
        "train": (767, {"detected": 7_365, "labeled": 7_368}[boxes]), "query": (700, 1_400), "gallery": (700, gallery),
    }  # fmt: skip
    assert data.count_warning() is None
    assert len(names) == cuhk03.ALL_IMAGES[boxes]
    labels = dict(zip(names, content["labels"].ravel().tolist(), strict=True))
    cameras = dict(zip(names, content["camId"].ravel().tolist(), strict=True))
    for samples in (data.train, data.query, data.gallery):
        pairs = {(sample.identity, labels[name]) for sample, name in zip(samples, names_of(samples), strict=True)}
        assert len(pairs) == len({identity for identity, _ in pairs}) == len({label for _, label in pairs})
        assert [sample.camera for sample in samples] == [cameras[name] for name in names_of(samples)]


# ------------------------------------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split-id", "20", "--cuhk03-classic-split"], "split_id should be 0 to 19, one of .*, got 20"),
        (["--split-id", "-1", "--cuhk03-classic-split"], "split_id should be 0 to 19, one of .*, got -1"),
        (["--split-id", "3"], "split_id should be 0 in the new protocol, .*, got 3: --cuhk03-classic-split has 20"),
        (["-d", "market1501", "--split-id", "0"], "--split-id says nothing about market1501"),
        (["-d", "market1501", "--cuhk03-labeled"], "--cuhk03-labeled says nothing about market1501"),
        (["-d", "folder", "--cuhk03-classic-split"], "--cuhk03-classic-split says nothing about folder"),
        (["--pattern", "."], "--pattern says nothing about cuhk03"),
    ],
)
def test_a_wrong_split_or_flag_is_one_line(original, tmp_path, capsys, flags, message):
    argv = ["-d", "cuhk03", "--root", str(original), "--save-dir", str(tmp_path), "--use-cpu", *flags]
    with pytest.raises(SystemExit) as caught:
        alignedreid.main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2
    assert re.fullmatch(f"error: {message}.*", line), line
    assert not list(original.glob("images_*"))  # known before anything is extracted


@pytest.mark.parametrize("left", [0.02, 0.5, 0.9, 0.999])
def test_a_mat_cut_short(home, capsys, tmp_path, left):
    mat = home / "cuhk03_release" / "cuhk-03.mat"
    mat.write_bytes(mat.read_bytes()[: int(left * mat.stat().st_size)])
    argv = ["-d", "cuhk03", "--root", str(home), "--save-dir", str(tmp_path / "run"), "--use-cpu"]
    with pytest.raises(SystemExit):
        alignedreid.main(argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: cannot read '{mat}', which is damaged, cut short or another file (")
    assert not [path for path in home.iterdir() if "images_detected" in path.name and path.is_dir()]


def test_a_mat_of_other_content(home):
    mat = home / "cuhk03_release" / "cuhk-03.mat"
    with h5py.File(mat, "a") as file:
        cell = file[file[file["detected"][0, 1]][0, 0]]
        assert cell.dtype == np.uint8
        cell[...] = 7
        del file["testsets"]
    with pytest.raises(OSError, match="cannot read '.*cuhk-03.mat', .*testsets"):
        load_dataset("cuhk03", home)
    with h5py.File(mat, "a") as file:
        file["testsets"] = np.zeros((1, 2))
        del file["detected"]
    with pytest.raises(OSError, match="cannot read '.*cuhk-03.mat'"):
        load_dataset("cuhk03", home)


@pytest.mark.parametrize(("name", "options"), [
    (CONFIG.format("detected"), {}), ("splits_new_detected.json", {}), ("splits_classic_detected.json", CLASSIC),
])  # fmt: skip
def test_damaged_lists(extracted, tmp_path, name, options):
    write_config(tmp_path / "config.mat", list(draw_images("detected")))
    whole = (tmp_path / "config.mat").read_bytes() if name.endswith(".mat") else b'[{"train": [], "query": []'
    others = (b"[]", b"{}", b'{"train": []}', b"[{}]", b"7") if name.endswith(".json") else ()
    for content in (b"", whole[:100], whole[: len(whole) // 2], *others):
        (extracted / name).write_bytes(content)
        with pytest.raises(OSError, match=f"cannot read '.*{name}', which is damaged"):
            load_dataset("cuhk03", extracted, **options)


def test_indices_outside_of_the_list(extracted):
    names = list(draw_images("detected"))
    write_config(extracted / CONFIG.format("detected"), names)
    content = {key: value for key, value in loadmat(extracted / CONFIG.format("detected")).items() if key[0] != "_"}
    for index in (0, len(names) + 1):
        savemat(extracted / CONFIG.format("detected"), content | {"query_idx": np.array([[index]])})
        with pytest.raises(OSError, match=f"indices outside of its list of {len(names)} files"):
            load_dataset("cuhk03", extracted)


def test_missing_parts(extracted, tmp_path):
    with pytest.raises(FileNotFoundError, match="lacks cuhk03_new_protocol_config_detected.mat, which tells the new"):
        load_dataset("cuhk03", extracted)
    with pytest.raises(FileNotFoundError, match="lacks cuhk03_release/cuhk-03.mat and splits_classic_detected.json"):
        load_dataset("cuhk03", extracted, **CLASSIC)
    (tmp_path / "empty").mkdir()
    wanted = "it should hold cuhk03/cuhk03_release/cuhk-03.mat or cuhk03/images_labeled/ or cuhk03-np/labeled/"
    with pytest.raises(FileNotFoundError, match=f"no cuhk03 in '.*empty': {wanted}"):
        load_dataset("cuhk03", tmp_path / "empty", cuhk03_labeled=True)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_dataset("cuhk03", tmp_path / "nowhere")


def test_images_that_a_stopped_extraction_left_out(extracted, original, tmp_path):
    shutil.copy(original / CONFIG.format("detected"), extracted)
    shutil.copytree(original / "cuhk03_release", extracted / "cuhk03_release")
    folder = extracted / "images_detected"
    for name in ("1_003_1_02.png", "1_003_1_04.png"):
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match="images_detected' lacks 2 of .*, such as 1_003_1_02.png: del"):
        load_dataset("cuhk03", extracted)
    mat = extracted / "cuhk03_release" / "cuhk-03.mat"
    mat.rename(tmp_path / "away.mat")  # without it nothing is made again
    config = CONFIG.format("detected")
    with pytest.raises(FileNotFoundError, match=f"1_003_1_02.png: restore the .* files, or check that {config} is"):
        load_dataset("cuhk03", extracted)
    (tmp_path / "away.mat").rename(mat)
    for path in folder.glob("2_001_*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="has no image of 1 of the 2 test people of split 0 .* 2_001: "):
        load_dataset("cuhk03", extracted, **CLASSIC)
    shutil.rmtree(folder)  # as the message says
    assert load_dataset("cuhk03", extracted).query
    (folder / "1_1000_1_01.png").touch()
    with pytest.raises(ValueError, match="'1_1000_1_01.png' is not a CUHK03 file name: wanted one like 1_001_1_01.png"):
        load_dataset("cuhk03", extracted, **CLASSIC)


def test_a_stopped_extraction_leaves_nothing_and_the_next_one_is_whole(home, monkeypatch):
    save, calls = Image.Image.save, []

    def stopped(image, path):
        calls.append(path)
        if len(calls) == 20:
            raise KeyboardInterrupt
        save(image, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", stopped)
        load_dataset("cuhk03", home)
    assert not [path for path in home.iterdir() if "images" in path.name and path.is_dir()]
    load_dataset("cuhk03", home)
    assert len(list((home / "images_detected").glob("*.png"))) == len(draw_images("detected"))


def test_what_a_killed_extraction_left_is_removed(home):
    left = home / ".images_detected.x7k2" / "new"
    left.mkdir(parents=True)
    (left / "1_001_1_01.png").touch()
    other = home / ".images_labeled.a1b2"  # perhaps being filled at this moment
    other.mkdir()
    load_dataset("cuhk03", home)
    assert sorted(path.name for path in home.iterdir() if path.name.startswith(".")) == [other.name]


def test_permissions_are_no_damage(home, monkeypatch):
    """Where root runs the tests no file is closed to them, so the system's answers are put in."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "/a/folder")

    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", refuse)
        with pytest.raises(PermissionError, match=r"^cannot read '.*cuhk-03.mat': its permissions do not let you"):
            load_dataset("cuhk03", home)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: path != home)
        with pytest.raises(PermissionError, match="cuhk03' cannot be written to, and the images .* extracted there"):
            load_dataset("cuhk03", home)
    expected = load_dataset("cuhk03", home)
    with monkeypatch.context() as patch:  # images that are there need no writing
        patch.setattr(os, "access", lambda path, mode: path != home)
        assert load_dataset("cuhk03", home) == expected
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        with pytest.raises(PermissionError, match=f"^cannot read '/a/folder' of cuhk03: .*: chmod -R u.rX {home}$"):
            load_dataset("cuhk03", home)


def test_of_two_at_once_one_extracts(home, monkeypatch):
    extract, calls, found = cuhk03.extract_images, [], []
    monkeypatch.setattr(cuhk03, "extract_images", lambda *arguments: calls.append(arguments) or extract(*arguments))
    threads = [threading.Thread(target=lambda: found.append(load_dataset("cuhk03", home))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert found[0] == found[1] == found[2]
    assert not list(home.glob(".*"))  # nor does the file stay at which they met


def test_one_at_a_time(tmp_path):
    """Of many that come at any moment never two are in the block, though the file they meet at goes and comes."""
    inside, most = [], []

    def enter():
        for _ in range(30):
            with one_at_a_time(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 120
    assert not list(tmp_path.iterdir())


def test_h5py_is_asked_for_only_where_it_is_needed(home, original, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(OSError, match="reading '.*cuhk-03.mat' needs the package h5py: pip install h5py"):
        load_dataset("cuhk03", home)
    monkeypatch.undo()
    load_dataset("cuhk03", home)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert load_dataset("cuhk03", home).query
    assert load_dataset("cuhk03", home, **CLASSIC).query


def test_any_folder_on_the_way_will_do(home, monkeypatch):
    expected = load_dataset("cuhk03", home.parent)
    (home / "images_labeled").mkdir()  # one may as well name the folder of the other boxes
    for root in (home, home / "cuhk03_release", home / "images_detected", home / "images_labeled"):
        assert load_dataset("cuhk03", root) == expected
        monkeypatch.chdir(root)
        assert names_of(load_dataset("cuhk03", ".").query) == names_of(expected.query)
    home.rename(home.with_name("Cuhk-03"))
    assert names_of(load_dataset("cuhk03", home.parent).query) == names_of(expected.query)
    assert "warning: not the official counts of cuhk03: train has" in expected.summary()


def test_counts_of_a_classic_split(home, monkeypatch):
    """Images that are missing from the training are told by the sum, which every split shares."""
    everything = len(draw_images("detected"))
    data = load_dataset("cuhk03", home, **CLASSIC)
    assert data.official["train"] == (1_367, 14_097 - len(data.query))
    assert data.official["query"] == data.official["gallery"] == (100, len(data.query))
    monkeypatch.setitem(cuhk03.ALL_IMAGES, "detected", everything)
    data = load_dataset("cuhk03", home, **CLASSIC)
    assert data.official["train"].images == len(data.train)
