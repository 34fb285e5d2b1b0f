"""Which checkpoints are tested on which data sets, and the papers' table of a model on data sets it has not seen."""

import argparse
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from reidops_models.checkpoints import read_checkpoint
from train.data import ReIDDataset, find_input, load_dataset, own_options
from train.evaluate import DISTANCES
from train.lines import one_line_warnings
from train.script import data_options, read_dataset, require_testable

# Data sets as the papers call them.
TITLES = {
    "market1501": "Market-1501",
    "dukemtmcreid": "DukeMTMC-reID",
    "cuhk03": "CUHK03 detected",
    "cuhk03 --cuhk03-labeled": "CUHK03 labelled",
    "cuhk03np_detected": "CUHK03-NP detected",
    "cuhk03np_labeled": "CUHK03-NP labelled",
    "msmt17": "MSMT17",
}

UNNAMED = "data the checkpoint does not name"

_EPOCH_IN_NAME = re.compile(r"_(\d+)(?:-[^_]*)?$")  # market_160.pkl, market_160-best.pkl


def checkpoints_in(path: str | PathLike) -> list[tuple[Path, int | None]]:
    """A checkpoint, or all those of a folder in the order of their epochs.

    Args:
        path: a file, or a folder with .pkl files (if it has none, with .pth files).

    Returns:
        Each with its epoch: the number that ends its name, else what it holds under "epoch", else None. Those without
        an epoch come last.

    Raises:
        FileNotFoundError: there is no such file or folder, or no checkpoint in the folder.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.pkl")) or sorted(path.glob("*.pth"))
        if not found:
            raise FileNotFoundError(f"the folder {path} holds no checkpoint (*.pkl or *.pth)")
    elif path.is_file():
        found = [path]
    else:
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    dated = [(file, _epoch_of(file)) for file in found]
    return sorted(dated, key=lambda item: (item[1] is None, item[1], item[0].name))


def _epoch_of(path: Path) -> int | None:
    in_name = _EPOCH_IN_NAME.search(path.stem)
    if in_name:
        return int(in_name[1])
    epoch = read_checkpoint(path).get("epoch")
    return epoch if type(epoch) is int else None


def read_data(
    args: argparse.Namespace, dataset: ReIDDataset | None = None
) -> tuple[ReIDDataset | None, list[ReIDDataset]]:
    """The data sets of a run, as its flags say, after their counts are printed.

    Args:
        args: with the data flags, evaluate and test_on.
        dataset: the data, instead of what --dataset and --root name.

    Returns:
        What to train on, None where others are tested and nothing is trained; and what to test on.

    Raises:
        ValueError, OSError: a data set is not there, or cannot be tested on.
    """
    if dataset is None and not (args.evaluate and args.test_on):
        dataset = read_dataset(args)
    tests = read_domains(args.test_on, args.root, dataset, data_options(args)) if args.test_on else [dataset]
    require_testable(args, tests if args.evaluate or dataset in tests else [dataset, *tests])
    return dataset, tests


def read_domains(
    names: Sequence[str],
    root: str | PathLike,
    trained_on: ReIDDataset | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[ReIDDataset]:
    """The data sets to test on.

    Args:
        names: data sets, each by its name or as NAME=ROOT.
        root: the folder that holds those that name no root of their own.
        trained_on: the data set of the training, which none of them should turn out to be by mistake.
        options: of data sets; each takes those that it has.

    Returns:
        One data set a name.

    Raises:
        ValueError: a name is unknown, or leads to the images of another data set of the run.
        FileNotFoundError: a data set is not there.
    """
    found: dict[str, ReIDDataset] = {}
    places = {} if trained_on is None else {_place(trained_on): trained_on.name}
    for item in names:
        name, _, own_root = item.partition("=")
        with one_line_warnings():
            data = load_dataset(name, own_root or root, **own_options(name, options or {}))
        if not own_root and name != "folder" and _place(data).parent == find_input(root).resolve():
            raise ValueError(
                f"--root {root} should hold a folder for each data set that --test-on names, and it is itself one: "
                f"give {name}={root} if it is {name}"
            )
        other = places.setdefault(_place(data), data.name)
        if other != data.name:
            raise ValueError(
                f"--test-on {item} leads to the images of {other} in {_place(data)}: give {name}=FOLDER, the folder of "
                f"{name} itself"
            )
        if any(data.name == one.name for one in found.values()):
            raise ValueError(f"--test-on should name each data set once, got {name} twice")
        found[item] = data
    return list(found.values())


def _place(data: ReIDDataset) -> Path:
    """The folder of the queries, which a partial set has of its own; its gallery is the whole set's."""
    return Path(data.query[0].path).resolve().parent if data.query else Path(data.name)


def say_domains(trained_on: str | None, tested_on: str) -> str:
    """Which data set a model was trained on, if that is known, and on which it is tested.

    Example:
        >>> say_domains("market1501", "dukemtmcreid")
        'trained on Market-1501, tested on DukeMTMC-reID'
        >>> say_domains(None, "folder")
        'trained on data the checkpoint does not name, tested on folder'
    """
    return f"trained on {_title(trained_on)}, tested on {_title(tested_on)}"


def _title(name: str | None) -> str:
    return UNNAMED if name is None else TITLES.get(name, name)


def format_domains(rows: Sequence[Mapping]) -> str:
    """Rank-1/mAP in percent, a column a data set tested on, a row a checkpoint and way of scoring.

    Args:
        rows: of results.json, with "trained_on" (None where a checkpoint does not say), "test_set", "checkpoint",
            "distance", "protocol", "reranking", "rank1", "mAP". The distance is said where there are several.

    Example:
        >>> row = {"trained_on": "market1501", "test_set": "dukemtmcreid", "protocol": "mudeep"}
        >>> row |= {"checkpoint": "a/market_160.pkl", "distance": "cosine", "reranking": False}
        >>> print(format_domains([row | {"rank1": 0.4668, "mAP": 0.2733}]))
        trained on Market-1501, Rank-1/mAP  DukeMTMC-reID
        market_160, mudeep                    46.68/27.33
    """
    several = len({row["distance"] for row in rows}) > 1
    sets = list(dict.fromkeys(row["test_set"] for row in rows))
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        name = Path(row["checkpoint"].removesuffix(".tar")).stem if row["checkpoint"] else "last epoch"
        name += f", {DISTANCES[row['distance']]}" if several else ""
        name += f", {row['protocol']}" + (", re-ranked" if row["reranking"] else "")
        lines.setdefault(name, {})[row["test_set"]] = f"{100 * row['rank1']:.2f}/{100 * row['mAP']:.2f}"
    trained_on = {row["trained_on"] for row in rows} - {None}
    origin = " and ".join(map(_title, sorted(trained_on))) or UNNAMED
    corner = f"trained on {origin}, Rank-1/mAP"
    wide = max(map(len, (corner, *lines)))
    titles = list(map(_title, sets))
    table = [corner.ljust(wide) + "".join(f"  {title:>11}" for title in titles)]
    for name, scores in lines.items():
        cells = (scores.get(key, "-").rjust(max(11, len(title))) for key, title in zip(sets, titles, strict=True))
        table.append(name.ljust(wide) + "".join(f"  {cell}" for cell in cells))
    return "\n".join(table)
