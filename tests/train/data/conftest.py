"""Small data sets that several tests read."""

import pytest
from PIL import Image

from train.data import write_synthetic

SMALL = {
    "train_identities": 6, "test_identities": 4, "images_per_camera": 3, "cameras": 3, "height": 64, "width": 32,
}  # fmt: skip


@pytest.fixture(scope="session")
def small_parameters():
    """What the small synthetic set is made from."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory):
    """A small synthetic set, written once; tests only read it."""
    return write_synthetic(tmp_path_factory.mktemp("data"), **SMALL)


@pytest.fixture
def make_images():
    """Writes tiny images under a folder, given their names."""

    def make(folder, *names):
        for index, name in enumerate(names):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 8), (index % 256, 0, 0)).save(path)
        return folder

    return make
