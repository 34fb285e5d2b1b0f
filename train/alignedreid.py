"""Train AlignedReID, and print the table of its test distances.

Flags and defaults are those of the published script:

    python -m train.alignedreid -d market1501 --root data/market1501 -a resnet50 --test-distance all --reranking
    python -m train.alignedreid -d market1501 --root data/market1501 --evaluate --resume model.pth --reranking
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from reidops_models import AlignedReID
from reidops_models.alignedreid import BACKBONES
from reidops_models.checkpoints import fill, find_state_dict, read_checkpoint
from train import engine
from train.data import (
    ImageDataset,
    RandomIdentitySampler,
    ReIDDataset,
    Sample,
    dataset_names,
    load_dataset,
    test_transform,
    train_transform,
)
from train.data.paths import find_input, prepare_output
from train.evaluate import DISTANCES, Distances, Evaluation, chosen_distances, evaluate, format_table
from train.features import Features, extract_features, save_features
from train.visualize import draw_alignment, draw_curves, draw_ranked, nearest, telling_pair


def whole(least: int) -> Callable[[str], int]:
    """The type of a flag: a whole number of at least `least`."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"should be at least {least}, got {text}")
        return int(text)

    return number


def make_parser() -> argparse.ArgumentParser:
    """Every flag, grouped as the published script groups them."""
    parser = argparse.ArgumentParser(prog="python -m train.alignedreid", description="Train and evaluate AlignedReID.")
    add = parser.add_argument_group("data").add_argument
    add("--root", default="data", help="folder of the data set; a relative one is also looked for under $REIDOPS_DATA")
    add("-d", "--dataset", default="market1501", choices=dataset_names())
    add("-j", "--workers", type=whole(0), default=4, help="processes that load images; 0 loads in the main one")
    add("--height", type=whole(1), default=256)
    add("--width", type=whole(1), default=128)
    add("--pattern", help="-d folder: how file names tell identity and camera (see train.data.folder)")
    add("--query-camera", type=int, help="-d folder: the camera of the queries (default: the lowest)")
    add("--train-fraction", type=float, help="-d folder: part of the identities to train on, where nothing tells")

    add = parser.add_argument_group("model").add_argument
    add("-a", "--arch", default="resnet50", choices=BACKBONES)
    add("--weights", metavar="PATH", help="torchvision ImageNet weights to start the trunk from")
    add("--last-stride", type=int, default=2, choices=(1, 2), help="1: twice as many stripes (default 2, as published)")

    add = parser.add_argument_group("training").add_argument
    add("--labelsmooth", action="store_true", help="label smoothing of 0.1")
    add("--optim", default="adam", choices=engine.OPTIMIZERS)
    add("--max-epoch", type=whole(0), default=300)
    add("--train-batch", type=whole(1), default=32)
    add("--test-batch", type=whole(1), default=32)
    add("--lr", "--learning-rate", type=float, default=0.0002)
    add("--stepsize", type=int, default=150, help="epochs between two decays of the learning rate; 0 for none")
    add("--gamma", type=float, default=0.1, help="factor of a decay")
    add("--weight-decay", type=float, default=5e-4)
    add("--margin", type=float, default=0.3, help="margin of the triplet losses")
    add("--num-instances", type=whole(1), default=4, help="images of an identity in a batch")
    add("--htri-only", action="store_true", help="train by the triplet losses alone")
    add("--seed", type=whole(0), default=1)
    add("--resume", metavar="PATH", help="go on from a last.pth; with --evaluate, any checkpoint of this model")
    add("--amp", nargs="?", const="auto", choices=("auto", "bf16", "fp16"), help="mixed precision (default: off)")
    add("--channels-last", action="store_true", help="channels-last layout: faster on most processors")

    add = parser.add_argument_group("evaluation").add_argument
    add("--evaluate", action="store_true", help="only evaluate, the model given by --resume")
    add("--eval-step", type=int, default=-1, help="evaluate every so many epochs; -1 only after the last")
    add("--start-eval", type=int, default=0, help="no evaluation up to this epoch")
    add(
        "--test-distance",
        "--test_distance",
        default="global",
        choices=[*DISTANCES, "all"],
        help="global; local (DMLI, or stripe by stripe with --unaligned); global_local (their sum); dmli and "
        "global_dmli say DMLI outright; all: the papers' table",
    )
    add("--unaligned", action="store_true", help="local distance stripe by stripe, without DMLI")
    add("--reranking", action="store_true", help="k-reciprocal re-ranking too")
    add("--k1", type=whole(1), default=20, help="re-ranking: neighbours in a k-reciprocal set (default 20)")
    add("--k2", type=whole(1), default=6, help="re-ranking: neighbours averaged over (default 6)")
    add("--lambda", type=float, default=0.3, dest="lambda_value", help="re-ranking: weight of the distance itself")
    add("--save-features", metavar="NPZ", help="write the features of query and gallery, for train.evaluate")
    add("--pictures", action="store_true", help="write alignment.png, ranked.png and curves.png")

    add = parser.add_argument_group("machine").add_argument
    add("--save-dir", default="log", help="where everything is written (default: log)")
    add("--print-freq", type=whole(1), default=10, help="batches between two updates of the progress bar's figures")
    add("--use-cpu", "--use_cpu", action="store_true")
    add("--gpu-devices", default="0", help="GPU indices, such as 0 or 0,1")
    add("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    return parser


def run(args: argparse.Namespace, dataset: ReIDDataset | None = None) -> dict:
    """Train and evaluate as the flags say.

    Args:
        args: what `make_parser` parsed.
        dataset: the data, instead of what --dataset and --root name.

    Returns:
        What is written to results.json (results_test.json with --evaluate):
        {"dataset", "seconds", "rows", "training", "machine", "arguments"}.
    """
    start = time.perf_counter()
    if args.evaluate and not args.resume:
        raise ValueError("--evaluate needs the model's checkpoint in --resume")
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    device, gpus = pick_device(args)
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if dataset is None:
        options = {name: getattr(args, name) for name in ("pattern", "query_camera", "train_fraction")}
        given = {name: value for name, value in options.items() if value is not None}
        dataset = load_dataset(args.dataset, args.root, **given)
    print(dataset.summary())
    check(args, dataset)

    engine.seed_everything(args.seed)
    weights = find_input(args.weights, "weights") if args.weights else None
    identities = max(1, dataset.num_train_identities)  # none in a set that is only tested on
    model = AlignedReID(identities, args.arch, weights=weights, last_stride=args.last_stride)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    print(f"AlignedReID, {args.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device}")

    history, training = [], None
    if args.evaluate:
        content = read_checkpoint(args.resume)
        engine.require_settings(content, settings_of(args, dataset), engine.MODEL_SETTINGS, args.resume)
        skip = ("classifier.",)  # its identities need not be this data set's
        fill(model, find_state_dict(content, args.resume), args.resume, skip)
    else:
        history, training = train(args, dataset, model, device, gpus)

    features = extract(args, dataset, model, device)
    if args.save_features:
        save_features(features, args.save_features)
    features = features.normalized()
    distances = chosen_distances(args.test_distance, args.unaligned)
    options = {"k1": args.k1, "k2": args.k2, "lambda_value": args.lambda_value}
    evaluations = evaluate(features, distances, reranking=args.reranking, **options)
    print(format_table(evaluations))
    results = {
        "dataset": dataset.name,
        "seconds": time.perf_counter() - start,
        "rows": [evaluation.row() for evaluation in evaluations],
        "training": training,
        "machine": engine.describe_machine(device),
        "arguments": vars(args),
    }
    engine.write_json(results, folder / ("results_test.json" if args.evaluate else "results.json"))
    if args.pictures:
        draw_pictures(args, dataset, features, evaluations, history)
    return results


def check(args: argparse.Namespace, dataset: ReIDDataset) -> None:
    """Refuse, before anything is trained, what could not be trained, evaluated or written (ValueError, OSError)."""
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
    if not args.evaluate and args.train_batch == args.num_instances:
        raise ValueError(
            f"--train-batch {args.train_batch} with --num-instances {args.num_instances} makes batches of one person, "
            f"and the triplet losses compare people: give at least --train-batch {2 * args.num_instances}"
        )
    if args.save_features:
        if Path(args.save_features).is_dir():
            raise ValueError(f"--save-features should name a file, got the folder {args.save_features}")
        prepare_output(args.save_features)


def settings_of(args: argparse.Namespace, dataset: ReIDDataset) -> dict[str, str | int | float]:
    """What checkpoints remember of a run."""
    flags = engine.MODEL_SETTINGS + engine.TRAINING_SETTINGS + engine.KEPT_SETTINGS
    return {name: getattr(args, name) for name in flags} | {"dataset": dataset.name}


def pick_device(args: argparse.Namespace) -> tuple[torch.device, list[int]]:
    """The device to work on and all GPUs of --gpu-devices; the CPU and none without a GPU or with --use-cpu."""
    if args.use_cpu or not torch.cuda.is_available():
        return torch.device("cpu"), []
    gpus = [int(index) for index in args.gpu_devices.split(",")]
    return torch.device("cuda", gpus[0]), gpus


def train(
    args: argparse.Namespace, dataset: ReIDDataset, model: nn.Module, device: torch.device, gpus: Sequence[int]
) -> tuple[list[dict], dict]:
    """Train a model, from the start or from --resume; last.pth and best.pth are written on the way.

    Returns:
        The lines of log.jsonl, and {"epochs", "seconds", "best_rank1", "best_epoch"}.
    """
    folder = Path(args.save_dir)
    optimizer = engine.make_optimizer(args.optim, model, args.lr, args.weight_decay)
    trainer = engine.Trainer(
        model,
        engine.ReIDLoss(args.margin, 0.1 if args.labelsmooth else 0.0, args.htri_only),
        optimizer,
        engine.make_scheduler(optimizer, args.stepsize, args.gamma),
        device=device,
        amp_dtype=engine.mixed_precision(args.amp, device),
        channels_last=args.channels_last,
        gpus=gpus,
        print_freq=args.print_freq,
        settings=settings_of(args, dataset),
    )
    if args.resume:
        trainer.resume(args.resume)
        print(f"resumed from {args.resume} after epoch {trainer.epoch}")
    sampler = RandomIdentitySampler(dataset.train, args.train_batch, args.num_instances, seed=args.seed)
    images = ImageDataset(dataset.train, train_transform(args.height, args.width))
    loader = make_loader(args, images, device, args.train_batch, sampler=sampler, drop_last=True)

    prepare_folder(folder, args.resume)
    log = engine.Log(folder, trainer.epoch)
    if trainer.means and log.epoch < trainer.epoch:  # stopped after an epoch, before it was evaluated and logged
        finish_epoch(args, dataset, trainer, log, device)
    while trainer.epoch < args.max_epoch:
        engine.seed_everything(args.seed, trainer.epoch + 1)
        sampler.set_epoch(trainer.epoch)
        trainer.train_epoch(loader)
        trainer.save(folder / "last.pth")
        finish_epoch(args, dataset, trainer, log, device)
    log.close()
    seconds = sum(line["seconds"] for line in log.history)
    best = {"best_rank1": trainer.best_rank1, "best_epoch": trainer.best_epoch}
    return log.history, {"epochs": trainer.epoch, "seconds": seconds, **best}


def prepare_folder(folder: Path, resume: str | None) -> None:
    """Make a folder that of this run: bring what lies beside the resumed file, or clear away an earlier run."""
    if resume is None:
        old = [path for path in (folder / name for name in ("best.pth", "last.pth", "log.jsonl")) if path.is_file()]
        for path in old:
            path.unlink()
        if old:
            print(f"removed from an earlier run: {', '.join(map(str, old))}")
    elif Path(resume).parent.resolve() != folder.resolve():
        for name in ("best.pth", "log.jsonl"):
            if (beside := Path(resume).parent / name).is_file():
                with engine.written_whole(folder / name) as temporary:
                    shutil.copyfile(beside, temporary)


def finish_epoch(
    args: argparse.Namespace, dataset: ReIDDataset, trainer: engine.Trainer, log: engine.Log, device: torch.device
) -> None:
    """After an epoch: evaluate if it is due, keep the best model, write the log."""
    folder, entry = Path(args.save_dir), dict(trainer.means)
    due = args.eval_step > 0 and trainer.epoch % args.eval_step == 0 and trainer.epoch > args.start_eval
    if due or trainer.epoch == args.max_epoch:
        distance = chosen_distances(args.test_distance, args.unaligned)[:1]
        features = extract(args, dataset, trainer.model, device).normalized()
        evaluation = evaluate(features, distance, reranking=False)[0]
        entry |= {"rank1": evaluation.rank(1), "mAP": evaluation.mean_ap}
        if evaluation.rank(1) > trainer.best_rank1:
            trainer.best_rank1, trainer.best_epoch = evaluation.rank(1), trainer.epoch
            best = {"state_dict": trainer.model.state_dict(), "settings": trainer.settings}
            engine.write_checkpoint(best | {"epoch": trainer.epoch, "rank1": trainer.best_rank1}, folder / "best.pth")
            trainer.save(folder / "last.pth")
    log.add({"epoch": trainer.epoch, **entry})
    scores = f"  rank-1 {100 * entry['rank1']:.1f}  mAP {100 * entry['mAP']:.1f}" if "rank1" in entry else ""
    print(
        f"epoch {trainer.epoch:>3}/{args.max_epoch}  loss {entry['loss']:.3f} (cross entropy "
        f"{entry['cross_entropy']:.3f}, global {entry['global_loss']:.3f}, local {entry['local_loss']:.3f})  "
        f"accuracy {100 * entry['accuracy']:.1f} %  {entry['seconds']:.1f} s{scores}",
        flush=True,
    )


def extract(args: argparse.Namespace, dataset: ReIDDataset, model: nn.Module, device: torch.device) -> Features:
    """Features of the query and gallery images of a data set."""
    transform = test_transform(args.height, args.width)
    loaders = [
        make_loader(args, ImageDataset(samples, transform), device, args.test_batch)
        for samples in (dataset.query, dataset.gallery)
    ]
    return extract_features(model, *loaders, device)


def make_loader(
    args: argparse.Namespace, images: ImageDataset, device: torch.device, batch_size: int, **options
) -> DataLoader:
    """A loader as the machine flags say."""
    return DataLoader(images, batch_size, num_workers=args.workers, pin_memory=device.type == "cuda", **options)


def draw_pictures(
    args: argparse.Namespace,
    dataset: ReIDDataset,
    features: Features,
    evaluations: Sequence[Evaluation],
    history: Sequence[dict],
    queries: int = 6,
) -> None:
    """Write alignment.png, ranked.png (queries evenly spaced through the query set) and curves.png.

    With --evaluate the last is curves_test.png, beside the curves of the training. A picture that cannot be drawn is
    left out with a warning: the run has its results by then.
    """
    folder, size = Path(args.save_dir), (args.height, args.width)
    query_files, gallery_files = files(dataset.query), files(dataset.gallery)

    def alignment(path: Path) -> None:
        query, match = telling_pair(features)
        stripes = features.query_local[query], features.gallery_local[match]
        title = "One identity, two cameras: the stripes DMLI matches (the closer, the thicker the line)"
        draw_alignment(path, query_files[query], gallery_files[match], *stripes, size, title)

    def ranked(path: Path) -> None:
        name = evaluations[-1].distance
        distance = Distances(features).matrix(name)
        chosen = torch.linspace(0, len(query_files) - 1, min(queries, len(query_files))).round().long().tolist()
        rankings = [nearest(features, distance, query, query_files, gallery_files) for query in chosen]
        title = f"Queries and their nearest gallery images by {DISTANCES[name]} distance (green: same identity)"
        draw_ranked(path, rankings, size, title)

    def curves(path: Path) -> None:
        draw_curves(path, history, evaluations)

    curves_name = "curves_test" if args.evaluate else "curves"
    for name, draw in (("alignment", alignment), ("ranked", ranked), (curves_name, curves)):
        path = folder / f"{name}.png"
        try:
            draw(path)
            print(f"picture: {path}")
        except (ValueError, OSError) as error:
            print(f"warning: no {path}: {error}")


def files(samples: Sequence[Sample]) -> list[str]:
    """The image files of samples."""
    return [sample.path for sample in samples]


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser, last: Path | None = None) -> Iterator[None]:
    """Bad input and Ctrl-C end in one line, not in a traceback; `last` is the checkpoint to resume from, if any.

    An error in a process that loads images arrives with that process's traceback: its last line is the error.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"error: {(str(error).strip() or type(error).__name__).splitlines()[-1]}\n")
    except KeyboardInterrupt:
        advice = f": continue with --resume {last}" if last is not None and last.is_file() else ""
        parser.exit(130, f"interrupted{advice}\n")


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line; bad input ends in one line, not in a traceback."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with one_line_errors(parser, None if args.evaluate else Path(args.save_dir) / "last.pth"):
        return run(args)


if __name__ == "__main__":
    main()
