"""The cache of decoded images: the same pixels, from memory and from files, whatever happens to the files."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from train.data import BadImage, ImageCache, ImageDataset, Sample, cache, read_image, train_transform

PLACES = ("ram", "files")


@pytest.fixture
def paths(tmp_path):
    """Images of several sizes and kinds, one of them turned by its EXIF data."""
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    made = []
    for index, (size, name, options) in enumerate([
        ((32, 16), "a.jpg", {"quality": 90}), ((20, 30), "b.png", {}), ((16, 40), "c.jpg", {"exif": turned}),
        ((9, 7), "d.bmp", {}), ((24, 12), "e.jpg", {"progressive": True}),
    ]):  # fmt: skip
        made.append(str(tmp_path / name))
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8) // (index + 1)
        Image.fromarray(pixels).save(made[-1], **options)
    Image.new("LA", (5, 6), (90, 10)).save(tmp_path / "f.png")
    return [*made, str(tmp_path / "f.png")]


def make(place, tmp_path, **options):
    return ImageCache("ram" if place == "ram" else tmp_path / "cache", quiet=True, **options)


def same(image, path):
    return image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(read_image(path)))


def not_now(path):
    raise AssertionError(f"{path} was decoded")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("place", PLACES)
def test_the_same_pixels_without_decoding(paths, tmp_path, monkeypatch, place, workers):
    expected = {path: np.asarray(read_image(path)) for path in paths}
    images = make(place, tmp_path, workers=workers)
    before = torch.get_rng_state()
    assert images.add([*paths, paths[0]]) == {}
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(cache, "read_image", not_now)
    for path in paths:
        assert np.array_equal(np.asarray(images(path)), expected[path])
    np.asarray(images(paths[0])), images(paths[0]).putpixel((0, 0), (1, 2, 3))  # an image of one's own
    assert np.array_equal(np.asarray(images(paths[0])), expected[paths[0]])
    with pytest.raises(AssertionError, match="else"):
        images("else.jpg")


@pytest.mark.parametrize("place", PLACES)
def test_batches_are_those_without_a_cache(paths, tmp_path, place):
    """Same seeds, several processes and epochs: every tensor to the last bit."""
    samples = [Sample(path, index % 3, index) for index, path in enumerate(paths * 4)]

    def batches(read):
        torch.manual_seed(3)
        loader = DataLoader(ImageDataset(samples, train_transform(32, 16), read), 4, shuffle=True, num_workers=2)
        return [part for _ in range(2) for batch in loader for part in batch]

    images = make(place, tmp_path)
    images.add(paths)
    for ours, plain in zip(batches(images), batches(None), strict=True):
        assert torch.equal(ours, plain)


def test_spawned_processes_share_the_pixels(paths, tmp_path):
    samples, caches = [Sample(path, 0, 0) for path in paths], [make(place, tmp_path) for place in PLACES]
    expected = [np.asarray(read_image(path)) for path in paths]
    for images in caches:
        images.add(paths)
    for path in paths:
        os.unlink(path)  # nothing is left to decode
    both = ConcatDataset([ImageDataset(samples, np.asarray, images) for images in caches])
    loader = DataLoader(both, None, num_workers=1, multiprocessing_context="spawn")
    found = [image for image, *_ in loader]
    assert len(found) == 2 * len(paths)
    assert all(np.array_equal(image, want) for image, want in zip(found, expected * 2, strict=True))


def test_a_later_run_finds_the_file(paths, tmp_path, monkeypatch):
    make("files", tmp_path).add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat().st_mtime_ns
    monkeypatch.chdir(tmp_path)  # the same files by other names
    monkeypatch.setattr(cache, "read_image", not_now)
    names = [Path(path).name for path in paths]
    again = ImageCache("cache", quiet=True)
    assert again.add(names) == {}
    assert all(same(again(name), name) for name in names)
    assert file.stat().st_mtime_ns == written


def changed(path):
    Image.fromarray(255 - np.asarray(read_image(path))).save(path)


def touched(path):
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize("change", [changed, touched, os.unlink])
def test_a_file_of_other_images_is_made_anew(paths, tmp_path, change):
    make("files", tmp_path).add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.stat().st_ino
    change(paths[1])
    images = make("files", tmp_path)
    bad = images.add(paths, skip=True)
    assert list(bad) == ([] if os.path.exists(paths[1]) else [paths[1]])
    assert all(same(images(path), path) for path in paths if path not in bad)
    assert [one.name for one in (tmp_path / "cache").iterdir()] == [file.name] and file.stat().st_ino != before


@pytest.mark.parametrize("damage", ["cut", "cut to nothing", "other end", "older"])
def test_a_damaged_file_is_made_anew(paths, tmp_path, monkeypatch, damage):
    make("files", tmp_path).add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    if damage == "older":
        monkeypatch.setattr(cache, "FORMAT", 2)
    else:
        bytes_left = {"cut": content[:-9], "cut to nothing": b"", "other end": content[:-8] + b"\xff" * 8}
        file.write_bytes(bytes_left[damage])
    images = make("files", tmp_path)
    images.add(paths)
    assert all(same(images(path), path) for path in paths)
    assert monkeypatch is not None and len(file.read_bytes()) == len(content)


def test_nothing_is_left_of_a_run_that_fails(paths, tmp_path):
    Path(paths[3]).write_bytes(b"")
    with pytest.raises(BadImage, match="d.bmp': the file is empty"):
        make("files", tmp_path, workers=1).add(paths)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_run_left_is_cleared_away(paths, tmp_path):
    make("files", tmp_path).add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    file.unlink()
    old, young = (file.with_name(f"{file.name}.{name}.part") for name in ("old", "young"))
    for part in (old, young):
        part.write_bytes(b"")
    os.utime(old, (time.time() - 2 * cache.HOUR,) * 2)
    make("files", tmp_path).add(paths)
    assert sorted((tmp_path / "cache").iterdir()) == [file, young]


@pytest.mark.parametrize("place", PLACES)
def test_bad_images_are_not_held(paths, tmp_path, place):
    Path(paths[0]).write_bytes(Path(paths[0]).read_bytes()[:-40])  # its header is whole, so room is kept for it
    os.unlink(paths[2])
    for _ in range(2):  # the second time from a file, if there is one
        images = make(place, tmp_path)
        bad = images.add(paths, skip=True)
        assert list(bad) == [paths[0], paths[2]]
        assert "truncated" in bad[paths[0]] and "no such file" in bad[paths[2]]
        assert all(same(images(path), path) for path in paths if path not in bad)
        for path in bad:
            with pytest.raises(BadImage, match=Path(path).name):
                images(path)
        with pytest.raises(BadImage, match=r"a\.jpg.*truncated"):
            make(place, tmp_path).add(paths)


def test_an_image_that_grows_while_it_is_read_is_not_held(paths, tmp_path, monkeypatch):
    """Written over between the look at its header and its decoding: it must not run into its neighbour."""

    def grown(path):
        image = read_image(path)
        return image.resize((50, 50)) if path == paths[1] else image

    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_image", grown)
        images = make("ram", tmp_path)
        images.add(paths)
    assert all(same(images(path), path) for path in paths)


@pytest.mark.parametrize("place", PLACES)
def test_no_room_is_one_line_before_anything_is_decoded(paths, tmp_path, monkeypatch, place, capsys):
    class Disk:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk)
    monkeypatch.setattr(cache, "_free_memory", lambda: 1000)
    monkeypatch.setattr(cache, "read_image", not_now)
    what = {"ram": r"0.00 GB of memory, and 0.00 GB are free.*--cache DIR", "files": "where 0.00 GB are free"}[place]
    with pytest.raises(OSError, match=what):
        ImageCache("ram" if place == "ram" else tmp_path / "cache").add(paths, what="test images")
    assert "test images, 6 images, 0.00 GB" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_processes_of_torchrun_each_have_their_memory(monkeypatch):
    monkeypatch.setattr(cache, "_free_memory", lambda: 3000)
    cache._require_memory(1500)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cache._require_memory(1500)
    with pytest.raises(OSError, match="in each of 2 processes"):
        cache._require_memory(1501)


def test_free_memory_is_some():
    assert 0 < cache._free_memory() < 1 << 50


def test_a_folder_that_is_a_file(paths, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(NotADirectoryError, match="cache should lie in a folder"):
        make("files", tmp_path).add(paths)


def test_a_file_replaced_while_it_is_read(paths, tmp_path):
    """A process that maps it later must not take another run's file for it."""
    images = make("files", tmp_path)
    images.add(paths)
    state = images.stores[0].__getstate__()
    touched(paths[0])
    make("files", tmp_path).add(paths)
    with pytest.raises(OSError, match="made anew by another run"):
        cache._File.__new__(cache._File).__setstate__(state)
    assert same(images(paths[0]), paths[0])
