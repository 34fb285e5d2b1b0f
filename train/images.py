"""How a run reads its images: through a cache (--cache), and what becomes of those it cannot read (--on-bad-image).

--on-bad-image error ends the run at the first such image. With skip all images that the run will read are decoded once
before anything else, and it is from then on a run on the data set without those that cannot be: batches still hold P
identities x K images, ids and cameras stay with their features, and a run that is killed resumes as if it had not been.
Nothing is left out later: a file that goes bad during the run ends it.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from train import processes
from train.data import ImageCache, ReIDDataset, find_bad
from train.data.dataset import relabel
from train.script import files, require_evaluable

TEST_SUBSETS = ("query", "gallery")


def add_image_flags(add: Callable) -> None:
    """How images are read."""
    add(
        "--cache",
        default="off",
        metavar="off|ram|DIR",
        help="keep decoded images in memory, or in files in a folder, where the next run finds them (default: off)",
    )
    add(
        "--on-bad-image",
        default="error",
        choices=("error", "skip"),
        help="an image that cannot be read ends the run, or is left out of the data set with a warning; skip decodes "
        "all images once before the run (default: error)",
    )


def open_images(
    args: argparse.Namespace, dataset: ReIDDataset | None, tests: Sequence[ReIDDataset]
) -> tuple[ReIDDataset | None, list[ReIDDataset]]:
    """Make the images of a run readable as its flags say.

    Args:
        args: with cache, on_bad_image, workers, and evaluate, true where nothing is trained.
        dataset: to train on and to test on meanwhile.
        tests: to test on in the end; `dataset` itself may be among them.

    Returns:
        The same, with a `read` of their own and without what is skipped.

    Raises:
        BadImage: an image that was decoded cannot be read, without skip.
        OSError: there is no room for the cache.
        ValueError: what is left cannot be evaluated.
    """
    if args.evaluate:
        opened = [_open(args, test, TEST_SUBSETS) for test in tests]
        same = [new for old, new in zip(tests, opened, strict=True) if old is dataset]
        return same[0] if same else dataset, opened
    trained = _open(args, dataset, ("train", *TEST_SUBSETS))
    return trained, [trained if test == dataset else _open(args, test, TEST_SUBSETS) for test in tests]


def _open(args: argparse.Namespace, dataset: ReIDDataset, subsets: Sequence[str]) -> ReIDDataset:
    """A data set with the images of some subsets readable."""
    skip, quiet, bad = args.on_bad_image == "skip", processes.rank() > 0, {}
    if args.cache != "off":
        cache = ImageCache(args.cache, args.workers, quiet)
        dataset = replace(dataset, read=cache)
        first = args.cache == "ram" or processes.rank() == 0
        if not first:
            processes.wait()  # the first process writes the files, and the others find them
        for subset in subsets:
            bad |= cache.add(files(getattr(dataset, subset)), what=f"{dataset.name} {subset}", skip=skip)
        if first and args.cache != "ram":
            processes.wait()
    elif skip:
        for subset in subsets:
            paths = processes.share(files(getattr(dataset, subset)))
            bad |= find_bad(paths, args.workers, what=f"checking {dataset.name} {subset}", quiet=quiet)
    bad = processes.merge(bad)
    return _without(args, dataset, subsets, bad) if bad else dataset


def _without(
    args: argparse.Namespace, dataset: ReIDDataset, subsets: Sequence[str], bad: Mapping[str, str]
) -> ReIDDataset:
    """A data set without bad images, each of which is named in a warning; identities are numbered anew."""
    for reason in bad.values():
        print(f"warning: {reason}: it is left out")
    left, skipped = {}, {}
    for subset in subsets:
        samples = getattr(dataset, subset)
        left[subset] = [sample for sample in samples if sample.path not in bad]
        skipped[subset] = [sample.path for sample in samples if sample.path in bad]
    if "train" in left:
        left["train"] = relabel(left["train"])
    dataset = replace(dataset, **left, skipped=skipped)
    print(f"{dataset.name} is, without {describe_skipped(dataset)}:\n{dataset.summary()}")
    require_evaluable(args, dataset)
    return dataset


def describe_skipped(dataset: ReIDDataset) -> str:
    """How many images were taken out of each subset, in words; empty for none.

    Example:
        >>> describe_skipped(ReIDDataset("two", [], [], [], skipped={"train": [], "query": ["a.jpg"]}))
        '1 query image that cannot be read'
    """
    counts = {subset: len(paths) for subset, paths in dataset.skipped.items() if paths}
    total = sum(counts.values())
    words = " and ".join(f"{count} {subset}" for subset, count in counts.items())
    return f"{words} image{'s' if total > 1 else ''} that cannot be read" if counts else ""


def report_skipped(dataset: ReIDDataset) -> None:
    """One line below a table that was made without some images."""
    if dataset.skipped:
        print(f"without {describe_skipped(dataset)}")
