"""What the training scripts share: flags, devices, folders, loaders, and errors of one line."""

import argparse
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from reidops_models.checkpoints import FOREIGN, IMAGENET, describe, kind_of, load_content, read_weights
from reidops_models.imagenet import is_imagenet_name
from reidops_models.reading import find_state_dict
from train import processes
from train.data import BadImage, ImageDataset, ReIDDataset, Sample, dataset_names, load_dataset, own_options
from train.data.paths import find_input, prepare_output
from train.engine import Trainer, seed_everything, write_checkpoint
from train.evaluate import Evaluation
from train.features import Features
from train.files import written_whole
from train.lines import one_line_warnings
from train.log import Log


def whole(least: int) -> Callable[[str], int]:
    """The type of a flag: a whole number of at least `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"should be at least {least}, got {text}")
        return int(text)

    return number


def positive(text: str) -> float:
    """The type of a flag: a number above 0."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"should be above 0, got {text}")
    return float(text)


def add_data_flags(parser: argparse.ArgumentParser, height: int, width: int, workers: int) -> None:
    """What to read, and how large."""
    add = parser.add_argument_group("data").add_argument
    add("--root", default="data", help="folder of the data set; a relative one is also looked for under $REIDOPS_DATA")
    add("-d", "--dataset", default="market1501", choices=dataset_names())
    add("-j", "--workers", type=whole(0), default=workers, help="processes that load images; 0 loads in the main one")
    add("--height", type=whole(1), default=height)
    add("--width", type=whole(1), default=width)
    add("--pattern", help="-d folder: how file names tell identity and camera (see train.data.folder)")
    add("--query-camera", type=int, help="-d folder: the camera of the queries (default: the lowest)")
    add("--train-fraction", type=float, help="-d folder: part of the identities to train on, where nothing tells")
    add("--cuhk03-labeled", action="store_true", help="-d cuhk03: boxes drawn by hand (default: the detector's)")
    add(
        "--cuhk03-classic-split",
        action="store_true",
        help="-d cuhk03: 1,367 people to train on and 100 to test on (default: the new protocol, 767 and 700); the "
        "papers score it by the protocol cuhk03, which is not taken unless asked for",
    )
    add("--split-id", type=int, help="-d cuhk03: which of the 20 classic splits, from 0 (default 0)")
    add(
        "--without-validation",
        action="store_true",
        help="-d msmt17: train on list_train.txt alone, as the published programs do (default: the paper's 32,621)",
    )


DATA_OPTIONS = (
    "pattern", "query_camera", "train_fraction", "cuhk03_labeled", "cuhk03_classic_split", "split_id",
    "without_validation",
)  # fmt: skip


def read_dataset(args: argparse.Namespace) -> ReIDDataset:
    """The data set that the data flags name."""
    options = own_options(args.dataset, data_options(args))
    with one_line_warnings():
        return load_dataset(args.dataset, args.root, **options)


def data_options(args: argparse.Namespace) -> dict[str, str | int | float]:
    """The data flags given that only some data sets have; ValueError if none of this run has one of them."""
    given = {name: getattr(args, name) for name in DATA_OPTIONS}
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    sets = [args.dataset, *(item.partition("=")[0] for item in args.test_on)]
    for option in given:
        if not any(own_options(name, given).keys() & {option} for name in sets):
            raise ValueError(f"--{option.replace('_', '-')} says nothing about {' or '.join(sets)}: leave it out")
    return given


def add_reranking_flags(add: Callable) -> None:
    """Re-ranking and its constants."""
    add("--reranking", action="store_true", help="k-reciprocal re-ranking too")
    add("--k1", type=whole(1), default=20, help="re-ranking: neighbours in a k-reciprocal set (default 20)")
    add("--k2", type=whole(1), default=6, help="re-ranking: neighbours averaged over (default 6)")
    add("--lambda", type=float, default=0.3, dest="lambda_value", help="re-ranking: weight of the distance itself")
    add("--save-features", metavar="NPZ", help="write the features of query and gallery, for train.evaluate")


def add_precision_flags(add: Callable) -> None:
    """Mixed precision and memory layout."""
    add("--amp", nargs="?", const="auto", choices=("auto", "bf16", "fp16"), help="mixed precision (default: off)")
    add("--channels-last", action="store_true", help="channels-last layout: faster on most processors")


def add_weights_flags(add: Callable) -> None:
    """What a training starts from."""
    add(
        "--weights",
        metavar="PATH|NAME",
        help="what to start from: ImageNet weights for the backbone, a file or a name to download (imagenet, "
        "IMAGENET1K_V2), or a checkpoint of this model to fine-tune",
    )
    add("--replace-classifier", action="store_true", help="--weights: all but the classifier, for other identities")


def start_from_weights(args: argparse.Namespace, model: nn.Module) -> None:
    """Fill a model as --weights and --replace-classifier say (ValueError, OSError)."""
    if args.replace_classifier and not args.weights:
        raise ValueError("--replace-classifier is said of the checkpoint in --weights: give that too")
    if args.weights:
        path = args.weights if is_imagenet_name(args.weights) else find_input(args.weights, "weights")
        content = read_weights(model, path)
        stripes = getattr(model, "stripes", None)
        load_content(model, content, path, replace_classifier=args.replace_classifier)
        if stripes is not None:
            model.stripes = stripes  # a local branch that the file lacks is trained from here on
        print(f"starts from {path}: {describe(content, path)}")


def load_trained(model: nn.Module, content: Mapping, path: str | Path) -> None:
    """Fill a model to be tested with what a checkpoint holds, all but the classifiers (ValueError)."""
    if (kind := kind_of(find_state_dict(content, path))) in (IMAGENET, FOREIGN):
        what = "ImageNet weights, no trained model" if kind == IMAGENET else kind
        raise ValueError(f"{path} holds {what}: --weights starts from such a file")
    load_content(model, content, path, replace_classifier=True)
    print(f"loaded {path}: {describe(content, path)}")


def add_test_sets_flag(add: Callable) -> None:
    """Testing on data sets other than that of the training."""
    add("--test-on", nargs="+", metavar="NAME[=ROOT]", default=[], help="test on these data sets, not on --dataset")


def require_testable(args: argparse.Namespace, datasets: Sequence[ReIDDataset]) -> None:
    """Print the counts of data sets, and refuse those that cannot be tested on (ValueError, OSError)."""
    for dataset in datasets:
        print(dataset.summary())
        require_evaluable(args, dataset)
        if min(len(dataset.query), len(dataset.gallery)) < processes.count():
            raise ValueError(f"{dataset.name} has fewer images in query or gallery than there are processes")
    if args.cuhk03_classic_split and args.protocol != "cuhk03":
        print("note: papers score CUHK03's classic splits by --protocol cuhk03, and this run does not")


def require_evaluable(args: argparse.Namespace, dataset: ReIDDataset) -> None:
    """Refuse, before anything is trained, what could not be evaluated or written (ValueError, OSError)."""
    for name in ("query", "gallery"):
        if not getattr(dataset, name):
            raise ValueError(f"the data set {dataset.name} has no {name} images to evaluate on: add some under --root")
    cameras: dict[int, set[int]] = {}
    for sample in dataset.gallery:
        cameras.setdefault(sample.identity, set()).add(sample.camera)
    if not any(cameras.get(sample.identity, set()) - {sample.camera} for sample in dataset.query):
        raise ValueError(f"no query of {dataset.name} is in the gallery under another camera: nothing can be found")
    images = len(dataset.query) + len(dataset.gallery)
    if args.reranking and images <= args.k1:
        raise ValueError(
            f"--reranking with --k1 {args.k1} needs more than {args.k1} images, query and gallery together, and "
            f"{dataset.name} has {images}: give a smaller --k1, or leave --reranking out"
        )
    if not 0 <= args.lambda_value <= 1:
        raise ValueError(f"--lambda should be between 0 and 1, got {args.lambda_value}")
    if args.save_features:
        if Path(args.save_features).is_dir():
            raise ValueError(f"--save-features should name a file, got the folder {args.save_features}")
        prepare_output(args.save_features)


def settle_processor(args: argparse.Namespace) -> None:
    """Threads as asked for, and numbers below 1e-38 taken as 0.

    A softmax over large scores is full of such numbers, and products with them take a processor twenty times as long.
    """
    torch.set_flush_denormal(True)
    if args.threads > 0:
        torch.set_num_threads(args.threads)


def pick_device(args: argparse.Namespace) -> tuple[torch.device, list[int]]:
    """The device to work on and all GPUs of --gpu-devices; the CPU and none without a GPU or with --use-cpu."""
    if args.use_cpu or not torch.cuda.is_available():
        return torch.device("cpu"), []
    gpus = [int(index) for index in args.gpu_devices.split(",")]
    return torch.device("cuda", gpus[0]), gpus


def prepare_folder(folder: Path, resume: str | None, names: Sequence[str]) -> None:
    """Make a folder that of this run: bring what lies beside the resumed file, or clear away an earlier run.

    Args:
        folder: of this run.
        resume: the checkpoint to go on from, if any.
        names: regular expressions for the names of a run's files.

    Raises:
        FileExistsError: files have such names, and there is no log.jsonl of a run that may have left them.
    """
    files = [path for path in folder.iterdir() if path.is_file() and any(re.fullmatch(n, path.name) for n in names)]
    if resume is None:
        old = sorted(files)
        if old and not (folder / "log.jsonl").is_file():
            raise FileExistsError(
                f"the folder {folder} holds {old[0].name}, and no log.jsonl of a run that left it there: it is not "
                f"overwritten; give another --save-dir"
            )
        for path in old:
            path.unlink()
        if old:
            print(f"removed from an earlier run: {', '.join(map(str, old))}")
    elif Path(resume).parent.resolve() != folder.resolve():
        beside = [path for path in Path(resume).parent.iterdir() if any(re.fullmatch(n, path.name) for n in names)]
        for path in beside:
            with written_whole(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)


def run_epochs(
    args: argparse.Namespace,
    trainer: Trainer,
    loader: DataLoader,
    log: Log,
    finish_epoch: Callable[[], Features | None],
) -> tuple[list[dict], dict, Features | None]:
    """Train up to --max-epoch, every epoch from a seed of its own, and write last.pth after each.

    Args:
        trainer, log: as they are after the last epoch of the run so far.
        loader: batches from a sampler with `set_epoch`.
        finish_epoch: tests and logs the epoch that the trainer has come to, and returns the features of the test.

    Returns:
        The lines of log.jsonl, {"epochs", "seconds", "best_rank1", "best_epoch"}, and the features of the model as it
        is now, or None if it has not been tested.
    """
    features = None
    if trainer.means and log.epoch < trainer.epoch:  # stopped after an epoch, before it was evaluated and logged
        features = finish_epoch()
    while trainer.epoch < args.max_epoch:
        seed_everything(args.seed, trainer.epoch + 1)
        loader.sampler.set_epoch(trainer.epoch)
        trainer.train_epoch(loader)
        trainer.save(Path(args.save_dir) / "last.pth")
        features = finish_epoch()
    log.close()
    seconds = sum(line["seconds"] for line in log.history)
    best = {"best_rank1": trainer.best_rank1, "best_epoch": trainer.best_epoch}
    return log.history, {"epochs": trainer.epoch, "seconds": seconds, **best}, features


def keep_best(trainer: Trainer, evaluation: Evaluation, folder: Path) -> None:
    """Write best.pth if a model's rank-1 is the best so far, and last.pth again, which remembers it."""
    if evaluation.rank(1) > trainer.best_rank1:
        trainer.best_rank1, trainer.best_epoch = evaluation.rank(1), trainer.epoch
        best = {"state_dict": trainer.model.state_dict(), "settings": trainer.settings.values}
        write_checkpoint(best | {"epoch": trainer.epoch, "rank1": trainer.best_rank1}, folder / "best.pth")
        trainer.save(folder / "last.pth")


def report_epoch(entry: Mapping[str, float], losses: Sequence[str], epochs: int) -> None:
    """One line on the screen for a line of the log."""
    total, *parts = losses
    parts = ", ".join(f"{name.removesuffix('_loss').replace('_', ' ')} {entry[name]:.3f}" for name in parts)
    scores = f"  rank-1 {100 * entry['rank1']:.1f}  mAP {100 * entry['mAP']:.1f}" if "rank1" in entry else ""
    print(
        f"epoch {entry['epoch']:>3}/{epochs}  {total} {entry[total]:.3f} ({parts})  accuracy "
        f"{100 * entry['accuracy']:.1f} %  {entry['seconds']:.1f} s{scores}",
        flush=True,
    )


def make_loader(
    args: argparse.Namespace, images: ImageDataset, device: torch.device, batch_size: int, **options
) -> DataLoader:
    """A loader as the machine flags say."""
    return DataLoader(images, batch_size, num_workers=args.workers, pin_memory=device.type == "cuda", **options)


def files(samples: Sequence[Sample]) -> list[str]:
    """The image files of samples."""
    return [sample.path for sample in samples]


def draw_all(folder: Path, pictures: Mapping[str, Callable[[Path], None]]) -> None:
    """Draw pictures by name; one that cannot be drawn is left out with a warning: the run has its results by then."""
    for name, draw in pictures.items():
        path = folder / f"{name}.png"
        try:
            draw(path)
            print(f"picture: {path}")
        except (ValueError, OSError) as error:
            print(f"warning: no {path}: {error}")


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser, last: Path | None = None) -> Iterator[None]:
    """Bad input and Ctrl-C end in one line, not in a traceback; `last` is the checkpoint to resume from, if any.

    An error in a process that loads images arrives with that process's traceback: its last line is the error, after
    the error's name, which is left out.
    """
    try:
        yield
    except BadImage as error:
        reason = str(error)[str(error).rindex("cannot read the image") :].strip()
        parser.exit(2, f"error: {reason}; put a whole file in its place, or leave it out: --on-bad-image skip\n")
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        name, text = type(error).__name__, str(error).strip()
        line = (text or name).splitlines()[-1]
        if text.startswith(f"Caught {name} in "):
            line = re.sub(rf"^([\w.]+\.)?{name}: ", "", line)
        parser.exit(2, f"error: {line}\n")
    except KeyboardInterrupt:
        advice = f": continue with --resume {last}" if last is not None and last.is_file() else ""
        parser.exit(130, f"interrupted{advice}\n")
