"""Data sets, samplers and transforms.

``load_dataset(name, root)`` reads a data set, ``ImageDataset`` its images, if need be through an ``ImageCache``,
``RandomIdentitySampler`` deals its batches; ``find_bad`` looks for images that cannot be read;
``write_synthetic`` and ``make_partial_queries`` make data sets on the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial as _with
from importlib import import_module
from pathlib import Path
from typing import Any

from train.data.cache import ImageCache
from train.data.cuhk03 import load_cuhk03
from train.data.dataset import BadImage, ImageDataset, ReIDDataset, Sample, read_image
from train.data.folder import load_folder
from train.data.market1501 import load_market1501, load_partial
from train.data.msmt17 import load_msmt17
from train.data.paths import find_input
from train.data.samplers import RandomIdentitySampler
from train.data.scan import find_bad
from train.data.transforms import Random2DTranslation, erasing_transform, test_transform, to_device, train_transform

_DUKE = ("dukemtmc-reid", "DukeMTMC-reID")


def _cuhk03np(boxes: str) -> tuple[str, ...]:
    """Where CUHK03's new protocol has the images of one kind of boxes, in Market-1501's layout."""
    return (f"cuhk03-np/{boxes}", f"CUHK03-NP/{boxes}", f"cuhk03np/{boxes}", boxes)


_LOADERS: dict[str, Callable[..., ReIDDataset]] = {
    "market1501": _with(load_market1501, name="market1501", folders=("Market-1501-v15.09.15", "Market-1501")),
    "dukemtmcreid": _with(load_market1501, name="dukemtmcreid", folders=_DUKE),
    "cuhk03": load_cuhk03,
    "cuhk03np_detected": _with(load_market1501, name="cuhk03np_detected", folders=_cuhk03np("detected")),
    "cuhk03np_labeled": _with(load_market1501, name="cuhk03np_labeled", folders=_cuhk03np("labeled")),
    "msmt17": load_msmt17,
    "market1501_partial": _with(load_partial, name="market1501_partial"),
    "dukemtmcreid_partial": _with(load_partial, name="dukemtmcreid_partial"),
    "synthetic": _with(load_market1501, name="synthetic"),
    "synthetic_partial": _with(load_partial, name="synthetic_partial"),
    "folder": load_folder,
}

_OPTIONS: dict[str, tuple[str, ...]] = {  # of the loaders that take any
    "cuhk03": ("cuhk03_labeled", "cuhk03_classic_split", "split_id"),
    "msmt17": ("without_validation",),
    "folder": ("pattern", "query_camera", "train_fraction", "seed"),
}

# These two modules are also programs (python -m train.data.synthetic), so they are imported on first use only:
# a program must not have been imported by its own package before it starts.
_PROGRAMS = {"write_synthetic": "train.data.synthetic", "make_partial_queries": "train.data.partial"}

__all__ = [
    "BadImage",
    "ImageCache",
    "ImageDataset",
    "Random2DTranslation",
    "RandomIdentitySampler",
    "ReIDDataset",
    "Sample",
    "dataset_names",
    "erasing_transform",
    "find_bad",
    "find_input",
    "load_dataset",
    "make_partial_queries",
    "own_options",
    "read_image",
    "test_transform",
    "to_device",
    "train_transform",
    "write_synthetic",
]


def dataset_names() -> list[str]:
    """The names that ``load_dataset`` knows.

    Example:
        >>> dataset_names()[:4]
        ['market1501', 'dukemtmcreid', 'cuhk03', 'cuhk03np_detected']
    """
    return list(_LOADERS)


def own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that a data set has.

    Example:
        >>> own_options("cuhk03", {"split_id": 3, "pattern": ".*"})
        {'split_id': 3}
    """
    return {option: value for option, value in options.items() if option in _OPTIONS.get(name, ())}


def load_dataset(name: str, root: str | Path, **options: Any) -> ReIDDataset:
    """Reads the file lists of a data set; no image is opened.

    Args:
        name: one of ``dataset_names()``.
        root: the data set's folder, or the folder that holds one of that name; a relative one that does not exist
            is also looked for under ``$REIDOPS_DATA``.
        options: of the ``folder`` set: ``pattern``, ``query_camera``, ``train_fraction``, ``seed``
            (see ``train.data.folder.load_folder``); of ``msmt17``: ``without_validation``
            (see ``train.data.msmt17``); of ``cuhk03``: ``cuhk03_labeled``, ``cuhk03_classic_split``, ``split_id``
            (see ``train.data.cuhk03``).

    Returns:
        Training, query and gallery samples. Their ``summary()`` is the table of counts; where these are not the
        official ones, its last line warns and names every difference.

    Raises:
        FileNotFoundError: the folder, or a part of it, is missing.
        PermissionError: a file or folder of it may not be read.
        ValueError: the name is unknown, an option is, a subset is empty, or a file name does not follow the pattern.
    """
    if name not in _LOADERS:
        raise ValueError(f"name should be one of {', '.join(_LOADERS)}, got {name!r}")
    allowed = _OPTIONS.get(name, ())
    if unknown := [option for option in options if option not in allowed]:
        takes = f"has the options {', '.join(allowed)}" if allowed else "takes no options"
        raise ValueError(f"the data set {name} {takes}, got {', '.join(unknown)}")
    try:
        try:
            root = find_input(root, f"folder for {name}")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; give --root") from None
        return _LOADERS[name](root, **options)
    except PermissionError as error:
        if error.filename is None:  # it says already what to do
            raise
        advice = f"the permissions do not let you: chmod -R u+rX {root}"
        raise PermissionError(f"cannot read '{error.filename}' of {name}: {advice}") from error


def __getattr__(name: str) -> Any:
    if name in _PROGRAMS:
        return getattr(import_module(_PROGRAMS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
