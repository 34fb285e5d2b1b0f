"""Makes files in the form of CUHK03's own: cuhk-03.mat as MATLAB 7.3 writes it, and the new protocol's .mat."""

from pathlib import Path

import h5py
import numpy as np
from scipy.io import savemat

PAIRS = (4, 2, 1, 1, 1)  # people before each pair of cameras
TEST_SETS = [[[1, 1 + split % 4], [2, 1 + split % 2]] for split in range(20)]
EMPTY = {(1, 2): range(6, 11), (2, 1): (3, 4, 5, 9), (5, 1): (1, 2)}  # images not there; 1_002 has one view only


def draw_images(boxes: str) -> dict[str, np.ndarray]:
    """Every image by its name: noise, each of a size of its own and higher than wide."""
    rng, images = np.random.default_rng(len(boxes)), {}
    for pair, people in enumerate(PAIRS, start=1):
        for person in range(1, people + 1):
            for index in range(1, 11):
                if index not in EMPTY.get((pair, person), ()):
                    size = rng.integers((8, 3), (14, 7))
                    name = f"{pair}_{person:03d}_{1 if index < 6 else 2}_{index:02d}.png"
                    images[name] = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return images


def write_mat(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Writes cuhk-03.mat: cells of cells by reference, every array transposed, empty cells as their size.

    Returns:
        The images of "detected" and "labeled" by their names.
    """
    images = {boxes: draw_images(boxes) for boxes in ("detected", "labeled")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:  # before HDF5's own bytes MATLAB has 512 of text
        store = file.create_group("#refs#")

        def add(array: np.ndarray, kind: str) -> h5py.Reference:
            dtype = h5py.ref_dtype if kind == "cell" else array.dtype
            data = store.create_dataset(f"{len(store)}", data=array.T, dtype=dtype)
            data.attrs["MATLAB_class"] = np.bytes_(kind)
            return data.ref

        def cell_of(references: list) -> np.ndarray:
            return np.array(references, dtype=object).reshape(len(references), -1)

        for boxes, drawn in images.items():
            pairs = []
            for pair, people in enumerate(PAIRS, start=1):
                cells = np.empty((people, 10), dtype=object)
                for person, index in np.ndindex(people, 10):
                    image = drawn.get(f"{pair}_{person + 1:03d}_{1 if index < 5 else 2}_{index + 1:02d}.png")
                    if image is None:
                        cells[person, index] = add(np.zeros(2, np.uint64), "double")
                        file[cells[person, index]].attrs["MATLAB_empty"] = np.uint8(1)
                    else:
                        cells[person, index] = add(image, "uint8")
                pairs.append(add(cells, "cell"))
            file.create_dataset(boxes, data=cell_of(pairs).T, dtype=h5py.ref_dtype)
        test_sets = [add(np.array(people, float), "double") for people in TEST_SETS]
        file.create_dataset("testsets", data=cell_of(test_sets).T, dtype=h5py.ref_dtype)
    return images


def write_config(path: Path, names: list[str]) -> dict[str, list[str]]:
    """Writes a new protocol's .mat: people 1_001, 2_001 and 3_001 for the test, in an order of its own.

    Returns:
        The file names of "train", "query" and "gallery".
    """
    people = [name[:5] for name in names]
    test = [index for index, person in enumerate(people) if person in ("1_001", "2_001", "3_001")]
    subsets = {
        "train": [index for index in range(len(names)) if index not in test],
        "query": [index for index in reversed(test) if names[index].endswith(("_01.png", "_06.png"))],
        "gallery": [index for index in test if not names[index].endswith(("_01.png", "_06.png"))],
    }
    labels = np.unique(people, return_inverse=True)[1] + 1
    columns = {f"{subset}_idx": np.array(indices)[:, None] + 1.0 for subset, indices in subsets.items()}
    filelist = np.array([*names, None], dtype=object)[:-1, None]
    cameras = np.array([int(name[6]) for name in names])[:, None]
    savemat(path, {"filelist": filelist, "labels": labels[:, None], "camId": cameras, **columns})
    return {subset: [names[index] for index in indices] for subset, indices in subsets.items()}
