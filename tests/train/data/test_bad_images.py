"""An image that is cut, empty, missing or no image is an error that names it, never a picture that is part grey."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from train.data import BadImage, find_bad, read_image

FORMATS = {
    "jpg": {"quality": 90},
    "progressive.jpg": {"quality": 80, "progressive": True},
    "restarts.jpg": {"restart_marker_blocks": 2},
    "png": {},
    "bmp": {},
    "ppm": {},
    "tif": {},
    "webp": {},
}


EVERY_CUT = ("jpg", "progressive.jpg")


@pytest.fixture
def picture():
    """Smooth, as a photograph is."""
    y, x = np.mgrid[:48, :24]
    waves = [127 + 90 * np.sin(x / a + y / b) for a, b in ((5, 9), (7, 4), (3, 11))]
    return Image.fromarray(np.stack(waves, axis=2).astype(np.uint8))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("name", FORMATS)
def test_wherever_it_is_cut(picture, tmp_path, name):
    path = tmp_path / f"cut.{name}"
    picture.save(path, **FORMATS[name])
    content, whole = path.read_bytes(), np.asarray(read_image(path))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    detected = 0
    for length in range(0, len(content), 1 if name in EVERY_CUT else 5):
        path.write_bytes(content[:length])
        try:
            assert np.array_equal(np.asarray(read_image(path)), whole), f"cut to {length} of {len(content)} bytes"
        except BadImage as error:
            detected += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert detected > 50


@pytest.mark.parametrize("name", ["jpg", "progressive.jpg", "png"])
def test_zeros_instead_of_the_rest(picture, tmp_path, name):
    """What a disk that was full, or a machine that went down, leaves of a file."""
    path = tmp_path / f"zeros.{name}"
    picture.save(path, **FORMATS[name])
    content = path.read_bytes()
    for length in range(0, len(content) - 20, 7):
        path.write_bytes(content[:length] + bytes(len(content) - length))
        with pytest.raises(BadImage, match="zeros"):
            read_image(path)
    path.write_bytes(content + (bytes(100) if name != "png" else b""))  # after its end they do no harm
    assert read_image(path).size == picture.size


def test_the_reason_is_said(picture, tmp_path):
    content = {"empty.jpg": b"", "text.png": b"no image"}
    for name, bytes_of_it in content.items():
        (tmp_path / name).write_bytes(bytes_of_it)
    picture.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-2])
    (tmp_path / "folder.jpg").mkdir()
    picture.save(tmp_path / "whole.jpg")
    reasons = {
        "empty.jpg": "the file is empty", "text.png": "it is no image", "cut.jpg": "truncated",
        "folder.jpg": "Is a directory", "gone.jpg": "there is no such file",
    }  # fmt: skip
    paths = [str(tmp_path / name) for name in ("whole.jpg", *reasons)]
    for workers in (0, 2):
        bad = find_bad(paths, workers, quiet=True)
        assert list(bad) == paths[1:]
        for name, reason in reasons.items():
            assert bad[str(tmp_path / name)].startswith(f"cannot read the image '{tmp_path / name}': ")
            assert reason in bad[str(tmp_path / name)]
    with pytest.raises(BadImage, match="empty.jpg"):
        find_bad(paths, skip=False, quiet=True)
    with pytest.raises(FileNotFoundError):
        read_image(Path(os.devnull).with_name("gone.jpg"))
