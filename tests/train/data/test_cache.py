"""The cache of decoded images: the same pixels, from memory and from files, whatever happens to the files."""

import errno
import json
import os
import pickle
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


def end_with(content, index):
    """A file of pixels that ends otherwise; `index` is JSON, or a function that changes what stands there."""
    length = int.from_bytes(content[-8:], "little")
    if callable(index):
        changed_index = json.loads(content[-8 - length : -8])
        index(changed_index)
        index = json.dumps(changed_index)
    return content[: -8 - length] + index.encode() + len(index).to_bytes(8, "little")


@pytest.mark.parametrize("index", [
    "[1]", "null", "7", f'{{"format": {cache.FORMAT}}}', "[" * 100_000, lambda index: index.pop("total"),
    lambda index: index.update(total=None), lambda index: index["starts"].pop(), lambda index: index.update(shapes=3),
    lambda index: index["shapes"][0].append(1), lambda index: index["shapes"].__setitem__(0, [1000, 1000]),
    lambda index: index["starts"].__setitem__(1, -1), lambda index: index["shapes"].__setitem__(2, [1.5, 2.0]),
])  # fmt: skip
def test_a_file_with_an_odd_index_is_made_anew(paths, tmp_path, index):
    make("files", tmp_path).add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    file.write_bytes(end_with(content, lambda index: None))
    assert file.read_bytes() == content  # so it is the index that is odd
    file.write_bytes(end_with(content, index))
    images = make("files", tmp_path)
    images.add(paths)
    assert all(same(images(path), path) for path in paths)
    assert file.read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "cut at its front", "cut to nothing", "longer", "other end", "older"])
def test_a_damaged_file_is_made_anew(paths, tmp_path, monkeypatch, damage):
    make("files", tmp_path).add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    content = file.read_bytes()
    if damage == "older":
        monkeypatch.setattr(cache, "FORMAT", cache.FORMAT + 1)
    else:
        bytes_left = {
            "cut": content[:-9], "cut at its front": content[200:], "cut to nothing": b"", "longer": b"0" + content,
            "other end": content[:-8] + b"\xff" * 8,
        }  # fmt: skip
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
    what = {"ram": r"0.01 MB of memory, and 0.00 MB are free.*--cache DIR", "files": "where 0.00 MB are free"}[place]
    with pytest.raises(OSError, match=what):
        ImageCache("ram" if place == "ram" else tmp_path / "cache").add(paths, what="test images")
    assert "test images, 6 images, 0.01 MB" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_processes_of_torchrun_each_have_their_memory(monkeypatch):
    monkeypatch.setattr(cache, "_free_memory", lambda: 3000)
    cache._require_memory(1500)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cache._require_memory(1500)
    with pytest.raises(OSError, match="in each of 2 processes"):
        cache._require_memory(1501)


@pytest.mark.parametrize(("unit", "name"), [(1e6, "MB"), (1e9, "GB")])
def test_sizes_are_told_apart(tmp_path, monkeypatch, unit, name):
    class Disk:
        free = int(4.56 * unit)

    monkeypatch.setattr(cache, "_free_memory", lambda: Disk.free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk)
    with pytest.raises(OSError, match=f"needs 12.30 {name} of memory, and 4.56 {name} are free"):
        cache._require_memory(int(12.3 * unit))
    with pytest.raises(OSError, match=f"needs 12.30 {name} in '{tmp_path}', where 4.56 {name} are free"):
        cache._require_disk(int(12.3 * unit), tmp_path / "x.images")


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("where", "name"), [(cache, "open"), (os, "fsync"), (os, "replace"), (Path, "touch")])
def test_a_disk_that_fills_up(paths, tmp_path, monkeypatch, where, name):
    """After the look at what is free: of what cannot be written it is said which file it was for, and nothing stays."""
    with monkeypatch.context() as patch:
        patch.setattr(where, name, full, raising=False)
        with pytest.raises(
            OSError, match=r"write the cache '\S+\.images': No space left .*: give .*another disk, or --"
        ):
            make("files", tmp_path).add(paths)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(paths, tmp_path, monkeypatch):
    done, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *args: done.append("sync") or sync(*args))
    monkeypatch.setattr(os, "replace", lambda *args: done.append("replace") or replace(*args))
    make("files", tmp_path).add(paths)
    assert done == ["sync", "replace"]


def test_free_memory_is_some():
    assert 0 < cache._free_memory() < 1 << 50


@pytest.mark.parametrize("folder", ["cache", "cache/sub", "cache/sub/deeper"])
def test_a_folder_that_is_a_file(paths, tmp_path, folder):
    (tmp_path / "cache").write_text("")
    words = f"cache should lie in a folder, got '{tmp_path / folder}', and '{tmp_path / 'cache'}' is a file"
    with pytest.raises(NotADirectoryError, match=words):
        ImageCache(tmp_path / folder, quiet=True).add(paths)


def test_a_folder_that_cannot_be_made(paths):
    with pytest.raises(
        OSError, match="cannot make the folder '/proc/cache' for the cache: No such file .*give another"
    ):
        ImageCache("/proc/cache", quiet=True).add(paths)


@pytest.mark.parametrize("place", ["", " "])
def test_no_place_is_refused(place):
    with pytest.raises(ValueError, match=f"should be ram or a folder, got '{place}'"):
        ImageCache(place)


@pytest.mark.parametrize("change", [changed, touched, os.unlink])
def test_a_file_of_other_images_is_not_taken_by_a_later_process(paths, tmp_path, change):
    """It says so when it first reads, so that a loader can bring the words to the run."""
    images = make("files", tmp_path)
    images.add(paths)
    state, expected = pickle.dumps(images), np.asarray(images(paths[0]))
    change(paths[0])
    make("files", tmp_path).add(paths, skip=True)
    later = pickle.loads(state)
    with pytest.raises(OSError, match=r"the cache '\S+\.images' was removed or made anew while this run read it"):
        later(paths[0])
    assert np.array_equal(np.asarray(images(paths[0])), expected)


def test_a_file_that_is_gone_for_a_later_process(paths, tmp_path):
    images = make("files", tmp_path)
    images.add(paths)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(OSError, match=r"the cache '\S+\.images' was removed"):
        pickle.loads(pickle.dumps(images))(paths[0])


def test_a_later_process_takes_the_same_images_from_another_file(paths, tmp_path, monkeypatch):
    images = make("files", tmp_path)
    images.add(paths)
    (file,) = (tmp_path / "cache").iterdir()
    aside = file.rename(tmp_path / "aside")  # so that the other has another inode
    make("files", tmp_path).add(paths)
    assert file.stat().st_ino != aside.stat().st_ino
    monkeypatch.setattr(cache, "read_image", not_now)
    later = pickle.loads(pickle.dumps(images))
    assert all(np.array_equal(np.asarray(later(path)), np.asarray(images(path))) for path in paths)


def test_two_runs_fill_a_file_at_once(paths, tmp_path, monkeypatch):
    """The file that is there first stays, and both read it."""
    first, second, write_index, made = make("files", tmp_path), make("files", tmp_path), cache._write_index, []

    def overtaken(*args):
        write_index(*args)
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_write_index", write_index)
            patch.setattr(os, "getpid", lambda: 0)  # the other run's
            first.add(paths)
        made.extend(path.stat().st_ino for path in (tmp_path / "cache").glob("*.images"))

    with monkeypatch.context() as patch:
        patch.setattr(cache, "_write_index", overtaken)
        assert second.add(paths) == {}
    assert [path.stat().st_ino for path in (tmp_path / "cache").iterdir()] == made
    for images in (first, second):
        later = pickle.loads(pickle.dumps(images))
        assert all(same(images(path), path) and same(later(path), path) for path in paths)


def test_a_run_that_ends_while_another_looks_for_what_was_left(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda folder, _: [folder / "gone.part"])
    make("files", tmp_path).add(paths)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".images"]
