"""The synthetic pedestrians."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from train.data import load_dataset, write_synthetic
from train.data import synthetic as synthetic_set
from train.data.looks import BAGS, FAMILY_SIZE, HAIRSTYLES, HATS, LOWERS, PATTERNS, UPPERS, draw_look
from train.data.pedestrian import draw_person
from train.data.scene import SCENES, Box, draw_box, draw_camera, photograph
from train.data.skeleton import Pose


def pixels(folder):
    return {path.relative_to(folder): np.asarray(Image.open(path)) for path in folder.rglob("*.jpg")}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_layout_and_exact_counts(synthetic, small_parameters):
    data = load_dataset("synthetic", synthetic)
    assert load_dataset("synthetic", synthetic.parent) == data
    assert data.num_train_identities == 6 and len(data.train) == 6 * 3 * 3
    assert Counter((s.identity, s.camera) for s in data.train) == {(i, c): 3 for i in range(6) for c in (1, 2, 3)}
    assert Counter((s.identity, s.camera) for s in data.query) == {(i, c): 1 for i in range(7, 11) for c in (1, 2, 3)}
    gallery = Counter((s.identity, s.camera) for s in data.gallery if s.identity)
    assert gallery == {(i, c): 2 for i in range(7, 11) for c in (1, 2, 3)}
    assert sum(s.identity == 0 for s in data.gallery) == 4
    assert len(list((synthetic / "bounding_box_test").glob("-1_c*.jpg"))) == 2
    for path, image in pixels(synthetic).items():
        assert image.shape == (64, 32, 3), path
        assert image.std() > 5, path
    stamp = json.loads((synthetic / "synthetic.json").read_text())
    assert stamp.pop("images") and stamp == {"format": 1, "seed": 0, **small_parameters}


def test_same_seed_same_pixels(synthetic, small_parameters, tmp_path):
    again = write_synthetic(tmp_path, **small_parameters)
    assert same(pixels(synthetic), pixels(again))


def test_other_seed_other_pixels(synthetic, small_parameters, tmp_path):
    one, other = pixels(synthetic), pixels(write_synthetic(tmp_path, seed=1, **small_parameters))
    assert one.keys() == other.keys()
    assert not any(np.array_equal(one[key], other[key]) for key in one)


def test_a_picture_does_not_depend_on_the_others(synthetic, small_parameters, tmp_path):
    fewer = write_synthetic(tmp_path, **{**small_parameters, "train_identities": 2})
    one, other = pixels(synthetic), pixels(fewer)
    names = [name for name in one if name.name.startswith(("0001", "0002"))]
    assert len(names) == 18 and all(np.array_equal(one[name], other[name]) for name in names)


def test_written_once_and_replaced_when_the_parameters_change(tmp_path):
    tiny = {"train_identities": 2, "test_identities": 1, "cameras": 2, "height": 32, "width": 16}
    path = write_synthetic(tmp_path, **tiny)
    first = min(path.rglob("*.jpg"))
    written = first.stat().st_mtime_ns
    assert write_synthetic(tmp_path, **tiny) == path and first.stat().st_mtime_ns == written
    first.unlink()  # an incomplete set is written again
    write_synthetic(tmp_path, **tiny)
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])  # and so is a damaged one
    write_synthetic(tmp_path, **tiny)
    assert first.read_bytes() == whole
    write_synthetic(tmp_path, **{**tiny, "train_identities": 1})
    assert load_dataset("synthetic", path).num_train_identities == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["synthetic"]


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "synthetic").mkdir()
    (tmp_path / "synthetic" / "thesis.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="holds no synthetic.json"):
        write_synthetic(tmp_path, train_identities=1, test_identities=1)
    assert (tmp_path / "synthetic" / "thesis.txt").read_text() == "keep me"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the light went out")

    monkeypatch.setattr(synthetic_set, "photograph", fail)
    with pytest.raises(RuntimeError, match="the light went out"):
        write_synthetic(tmp_path, train_identities=1, test_identities=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, value",
    [("train_identities", 0), ("test_identities", -1), ("images_per_camera", 1), ("cameras", 1), ("height", 8),
     ("width", 2.5), ("seed", -1)],
)  # fmt: skip
def test_bad_arguments(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} should be a whole number of at least .*, got {value}"):
        write_synthetic(tmp_path, **{name: value})


def test_families_share_colours_and_nothing_else():
    for family in range(12):
        looks = [draw_look(0, family * FAMILY_SIZE + place + 1) for place in range(FAMILY_SIZE)]
        for trait in ("upper_colour", "second_colour", "lower_colour"):
            colours = np.array([getattr(look, trait) for look in looks])
            assert np.ptp(colours, axis=0).max() <= 14
        for trait in ("pattern", "bag", "hair"):
            assert len({getattr(look, trait) for look in looks}) == FAMILY_SIZE


def test_every_trait_occurs():
    looks = [draw_look(0, identity) for identity in range(1, 401)]
    traits = {"pattern": PATTERNS, "bag": BAGS, "hair": HAIRSTYLES, "hat": HATS, "upper": UPPERS, "lower": LOWERS}
    for trait, kinds in traits.items():
        assert {getattr(look, trait) for look in looks} == set(kinds)
    assert len(set(looks)) == 400


def test_every_kind_of_box_occurs():
    rng = np.random.default_rng(0)
    kinds = Counter(draw_box(rng).kind for _ in range(1000))
    assert set(kinds) == {"good", "no feet", "no head", "loose"}
    assert kinds["good"] > 450 and min(kinds.values()) > 60


def test_cameras_differ_in_everything():
    cameras = [draw_camera(0, number) for number in range(1, 7)]
    assert [camera.scene for camera in cameras] == list(SCENES)
    for name in ("yaw", "gain", "gamma", "saturation", "blur", "noise"):
        assert len({getattr(camera, name) for camera in cameras}) == 6
    look, box = draw_look(0, 1), Box("good", 0.9, 0.97, 0.5)
    views = [np.asarray(photograph(look, c, np.random.default_rng(0), 128, 64, box=box), float) for c in cameras]
    means = np.stack([view.mean((0, 1)) for view in views])
    assert np.abs(means[:, None] - means[None]).max(-1)[~np.eye(6, dtype=bool)].min() > 3


def figure(look, yaw, raised_arm=0):
    """A person on white; returns where it was drawn."""
    canvas = Image.new("RGB", (192, 384), (255, 255, 255))
    draw_person(canvas, look, Pose(yaw, 1.0, 0.3, 0.3, raised_arm), 96, 370, 340)
    return (np.asarray(canvas) < 250).any(-1), canvas


@pytest.mark.parametrize("identity", range(1, 25))
def test_a_figure_stands_where_it_should(identity):
    look = draw_look(5, identity)
    for yaw in np.linspace(0, 2 * np.pi, 8, endpoint=False):
        drawn, _ = figure(look, yaw)
        rows, columns = np.nonzero(drawn.any(1))[0], np.nonzero(drawn.any(0))[0]
        assert 0 < rows[0] < 60 and 355 < rows[-1] < 384  # head at the top, soles on the ground
        assert columns[0] < 96 < columns[-1] and columns[-1] - columns[0] < 190
        assert 0.08 < drawn.mean() < 0.45


def test_sides_of_a_person_differ():
    look = draw_look(0, 4)
    assert figure(look, 0.0)[1].tobytes() != figure(look, np.pi)[1].tobytes()
    front, side = figure(look, 0.0)[0], figure(look, np.pi / 2)[0]
    chest = slice(110, 150)
    assert front[chest].any(0).sum() > side[chest].any(0).sum()


def test_colour_alone_does_not_find_everyone(tmp_path):
    """Colour alone finds some people across the cameras, far from all: there is something to learn."""
    data = load_dataset("synthetic", write_synthetic(tmp_path, train_identities=1, test_identities=40))

    def describe(samples):
        histograms = []
        for sample in samples:
            strips = np.array_split(np.asarray(Image.open(sample.path))[:, 16:48] // 64, 6)
            counts = [np.bincount((strip.reshape(-1, 3) @ [16, 4, 1]), minlength=64) for strip in strips]
            histograms.append(np.sqrt(np.concatenate(counts)))
        return np.stack(histograms).astype(float)

    query, gallery = describe(data.query), describe(data.gallery)
    distance = (query**2).sum(1)[:, None] + (gallery**2).sum(1) - 2 * query @ gallery.T
    (ids, cameras), (gallery_ids, gallery_cameras) = (
        np.array([(sample.identity, sample.camera) for sample in samples]).T for samples in (data.query, data.gallery)
    )
    distance[(ids[:, None] == gallery_ids) & (cameras[:, None] == gallery_cameras)] = np.inf
    rank1 = (gallery_ids[distance.argmin(1)] == ids).mean()
    assert 2 / 40 < rank1 < 0.5


def test_runs_as_a_program(tmp_path):
    root = Path(synthetic_set.__file__).parents[2]
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "train.data.synthetic", "--root", tmp_path,
               "--train-identities", "2", "--test-identities", "2", "--cameras", "2",
               "--height", "32", "--width", "16"]  # fmt: skip
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train   |      2 |        8 |         2" in done.stdout
    assert len(load_dataset("synthetic", tmp_path).query) == 4
