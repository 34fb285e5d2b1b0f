"""A small data set to train on, drawn once, and the scripts on it."""

import pytest

from train import alignedreid
from train.data import write_synthetic

SMALL = ["-d", "synthetic", "-a", "resnet18", "--height", "64", "--width", "32", "-j", "0", "--train-batch", "8",
         "--num-instances", "2", "--test-batch", "16", "--use-cpu", "--seed", "3"]  # fmt: skip


def runner(script, small, root):
    """Runs a script on the data set at `root` with the flags `small` and those given, and returns its results."""

    def run(folder, *flags):
        argv = [*small, "--root", str(root), "--save-dir", str(folder), *map(str, flags)]
        return script.run(script.make_parser().parse_args(argv))

    return run


@pytest.fixture(scope="session")
def small_people(tmp_path_factory):
    """The folder of a synthetic data set of a few people."""
    root = tmp_path_factory.mktemp("people")
    return write_synthetic(
        root, train_identities=8, test_identities=6, images_per_camera=2, cameras=2, height=64, width=32, seed=5
    )


@pytest.fixture(scope="session")
def run_small(small_people):
    """Runs train.alignedreid on that data set."""
    return runner(alignedreid, SMALL, small_people)


@pytest.fixture(scope="session")
def trained(run_small, tmp_path_factory):
    """A run of two epochs with everything written: its folder and its results."""
    folder = tmp_path_factory.mktemp("trained")
    results = run_small(
        folder, "--max-epoch", 2, "--eval-step", 1, "--test-distance", "all", "--reranking", "--labelsmooth",
        "--pictures", "--save-features", folder / "features.npz",
    )  # fmt: skip
    return folder, results
