"""Train AlignedReID, and print the table of its test distances.

Flags and defaults are those of the published script:

    python -m train.alignedreid -d market1501 --root data/market1501 -a resnet50 --test-distance all --reranking
    python -m train.alignedreid -d market1501 --root data/market1501 --evaluate --resume model.pth --reranking
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from reidops_models import AlignedReID, load_checkpoint
from reidops_models.alignedreid import BACKBONES
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
from train.data.paths import find_input
from train.evaluate import DISTANCES, Distances, Evaluation, chosen_distances, evaluate, format_table
from train.features import Features, extract_features, save_features
from train.visualize import draw_alignment, draw_curves, draw_ranked, nearest, telling_pair


def make_parser() -> argparse.ArgumentParser:
    """Every flag, grouped as the published script groups them."""
    parser = argparse.ArgumentParser(prog="python -m train.alignedreid", description="Train and evaluate AlignedReID.")
    add = parser.add_argument_group("data").add_argument
    add("--root", default="data", help="folder of the data set; a relative one is also looked for under $REIDOPS_DATA")
    add("-d", "--dataset", default="market1501", choices=dataset_names())
    add("-j", "--workers", type=int, default=4, help="processes that load images; 0 loads in the main one")
    add("--height", type=int, default=256)
    add("--width", type=int, default=128)
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
    add("--max-epoch", type=int, default=300)
    add("--train-batch", type=int, default=32)
    add("--test-batch", type=int, default=32)
    add("--lr", "--learning-rate", type=float, default=0.0002)
    add("--stepsize", type=int, default=150, help="epochs between two decays of the learning rate; 0 for none")
    add("--gamma", type=float, default=0.1, help="factor of a decay")
    add("--weight-decay", type=float, default=5e-4)
    add("--margin", type=float, default=0.3, help="margin of the triplet losses")
    add("--num-instances", type=int, default=4, help="images of an identity in a batch")
    add("--htri-only", action="store_true", help="train by the triplet losses alone")
    add("--seed", type=int, default=1)
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
    add("--reranking", action="store_true", help="k-reciprocal re-ranking too (k1 20, k2 6, lambda 0.3)")
    add("--save-features", metavar="NPZ", help="write the features of query and gallery, for train.evaluate")
    add("--pictures", action="store_true", help="write alignment.png, ranked.png and curves.png")

    add = parser.add_argument_group("machine").add_argument
    add("--save-dir", default="log", help="where everything is written (default: log)")
    add("--print-freq", type=int, default=10, help="batches between two updates of the progress bar's figures")
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
        What is written to results.json: {"dataset", "seconds", "rows", "training", "machine", "arguments"}.
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

    engine.seed_everything(args.seed)
    weights = find_input(args.weights, "weights") if args.weights else None
    identities = max(1, dataset.num_train_identities)  # none in a set that is only tested on
    model = AlignedReID(identities, args.arch, weights=weights, last_stride=args.last_stride)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    print(f"AlignedReID, {args.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device}")

    history, training = [], None
    if args.evaluate:
        load_checkpoint(model, args.resume, skip=("classifier.",))  # its identities need not be this data set's
    else:
        history, training = train(args, dataset, model, device, gpus)

    features = extract(args, dataset, model, device)
    if args.save_features:
        save_features(features, args.save_features)
    features = features.normalized()
    distances = chosen_distances(args.test_distance, args.unaligned)
    evaluations = evaluate(features, distances, reranking=args.reranking)
    print(format_table(evaluations))
    results = {
        "dataset": dataset.name,
        "seconds": time.perf_counter() - start,
        "rows": [evaluation.row() for evaluation in evaluations],
        "training": training,
        "machine": engine.describe_machine(device),
        "arguments": vars(args),
    }
    if args.pictures:
        draw_pictures(args, dataset, features, evaluations, history)
    engine.write_json(results, folder / "results.json")
    return results


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
    )
    if args.resume:
        trainer.resume(args.resume)
        print(f"resumed from {args.resume} after epoch {trainer.epoch}")
    sampler = RandomIdentitySampler(dataset.train, args.train_batch, args.num_instances, seed=args.seed)
    images = ImageDataset(dataset.train, train_transform(args.height, args.width))
    loader = make_loader(args, images, device, args.train_batch, sampler=sampler, drop_last=True)

    log = engine.Log(folder, trainer.epoch)
    while trainer.epoch < args.max_epoch:
        engine.seed_everything(args.seed, trainer.epoch + 1)
        sampler.set_epoch(trainer.epoch)
        entry = trainer.train_epoch(loader)
        last = trainer.epoch == args.max_epoch
        due = args.eval_step > 0 and trainer.epoch % args.eval_step == 0 and trainer.epoch > args.start_eval
        if last or due:
            distance = chosen_distances(args.test_distance, args.unaligned)[:1]
            evaluation = evaluate(extract(args, dataset, model, device).normalized(), distance, reranking=False)[0]
            entry |= {"rank1": evaluation.rank(1), "mAP": evaluation.mean_ap}
            if evaluation.rank(1) > trainer.best_rank1:
                trainer.best_rank1, trainer.best_epoch = evaluation.rank(1), trainer.epoch
                best = {"state_dict": model.state_dict(), "epoch": trainer.epoch, "rank1": trainer.best_rank1}
                engine.write_checkpoint(best, folder / "best.pth")
        log.add({"epoch": trainer.epoch, **entry})
        trainer.save(folder / "last.pth")
        scores = f"  rank-1 {100 * entry['rank1']:.1f}  mAP {100 * entry['mAP']:.1f}" if "rank1" in entry else ""
        print(
            f"epoch {trainer.epoch:>3}/{args.max_epoch}  loss {entry['loss']:.3f} (cross entropy "
            f"{entry['cross_entropy']:.3f}, global {entry['global_loss']:.3f}, local {entry['local_loss']:.3f})  "
            f"accuracy {100 * entry['accuracy']:.1f} %  {entry['seconds']:.1f} s{scores}",
            flush=True,
        )
    log.close()
    seconds = sum(line["seconds"] for line in log.history)
    best = {"best_rank1": trainer.best_rank1, "best_epoch": trainer.best_epoch}
    return log.history, {"epochs": trainer.epoch, "seconds": seconds, **best}


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
    """Write alignment.png, ranked.png (queries evenly spaced through the query set) and curves.png."""
    folder, size = Path(args.save_dir), (args.height, args.width)
    query_files, gallery_files = files(dataset.query), files(dataset.gallery)
    query, match = telling_pair(features)
    draw_alignment(
        folder / "alignment.png",
        query_files[query],
        gallery_files[match],
        features.query_local[query],
        features.gallery_local[match],
        size,
        "One identity, two cameras: the stripes DMLI matches (the closer, the thicker the line)",
    )
    name = evaluations[-1].distance
    chosen = torch.linspace(0, len(query_files) - 1, min(queries, len(query_files))).round().long().tolist()
    distance = Distances(features).matrix(name)
    rankings = [nearest(features, distance, query, query_files, gallery_files) for query in chosen]
    draw_ranked(
        folder / "ranked.png",
        rankings,
        size,
        f"Queries and their nearest gallery images by {DISTANCES[name]} distance (green: same identity)",
    )
    draw_curves(folder / "curves.png", history, evaluations)
    print(f"pictures: {', '.join(str(folder / f'{name}.png') for name in ('alignment', 'ranked', 'curves'))}")


def files(samples: Sequence[Sample]) -> list[str]:
    """The image files of samples."""
    return [sample.path for sample in samples]


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line; bad input ends in one line, not in a traceback."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        return run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
