"""Train AlignedReID, and print the table of its test distances.

Flags and defaults are those of the published script:

    python -m train.alignedreid -d market1501 --root data/market1501 -a resnet50 --test-distance all --reranking
    python -m train.alignedreid -d market1501 --root data/market1501 --evaluate --resume model.pth --reranking
    python -m train.alignedreid --root data --evaluate --resume market.pth --test-on dukemtmcreid cuhk03
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from reidops_models import AlignedReID
from reidops_models.backbones import BACKBONES
from reidops_models.checkpoints import read_checkpoint
from train import engine
from train.data import ImageDataset, RandomIdentitySampler, ReIDDataset, test_transform, train_transform
from train.domains import format_domains, read_data, say_domains
from train.evaluate import (
    DISTANCES,
    DRAWS,
    PROTOCOLS,
    Distances,
    Evaluation,
    chosen_distances,
    evaluate,
    format_table,
)
from train.features import Features, extract_features, save_features
from train.files import write_json
from train.images import add_image_flags, describe_skipped, open_images, report_skipped
from train.log import Log, describe_machine
from train.losses import ReIDLoss
from train.script import (
    add_data_flags,
    add_precision_flags,
    add_reranking_flags,
    add_test_sets_flag,
    add_weights_flags,
    draw_all,
    files,
    keep_best,
    load_trained,
    make_loader,
    one_line_errors,
    pick_device,
    prepare_folder,
    report_epoch,
    run_epochs,
    settle_processor,
    start_from_weights,
    whole,
)
from train.settings import Settings, read_training_set, require_settings
from train.visualize import draw_alignment, draw_curves, draw_rankings, telling_pair


def make_parser() -> argparse.ArgumentParser:
    """Every flag, grouped as the published script groups them."""
    parser = argparse.ArgumentParser(prog="python -m train.alignedreid", description="Train and evaluate AlignedReID.")
    add_data_flags(parser, height=256, width=128, workers=4)
    add_image_flags(parser.add_argument_group("images").add_argument)

    add = parser.add_argument_group("model").add_argument
    add("-a", "--arch", default="resnet50", choices=BACKBONES)
    add_weights_flags(add)
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
    add_precision_flags(add)

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
    add(
        "--stripes",
        choices=("trunk", "branch"),
        help="where the stripes of a test come from: the trunk, or the branch that is trained (default: as published)",
    )
    add_test_sets_flag(add)
    add("--protocol", default="market1501", choices=PROTOCOLS, help=f"how ranks are scored; {DRAWS}")
    add(
        "--use-metric-cuhk03",
        action="store_const",
        dest="protocol",
        const="cuhk03",
        help="the published words for --protocol cuhk03; -d cuhk03 alone does not ask for it",
    )
    add_reranking_flags(add)
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
        {"dataset", "seconds", "rows", "skipped", "training", "machine", "arguments"}.
    """
    start = time.perf_counter()
    if args.evaluate and not args.resume:
        raise ValueError("--evaluate needs the model's checkpoint in --resume")
    settle_processor(args)
    device, gpus = pick_device(args)
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    dataset, tests = read_data(args, dataset)
    if args.save_features and len(tests) > 1:
        raise ValueError(f"--save-features writes the features of one data set, and --test-on names {len(tests)}")
    if not args.evaluate and args.train_batch == args.num_instances:
        raise ValueError(
            f"--train-batch {args.train_batch} with --num-instances {args.num_instances} makes batches of one person, "
            f"and the triplet losses compare people: give at least --train-batch {2 * args.num_instances}"
        )
    dataset, tests = open_images(args, dataset, tests)
    if not args.evaluate and dataset.num_train_identities < (people := args.train_batch // args.num_instances):
        left = f", without {describe_skipped(dataset)}," if dataset.skipped else ""
        raise ValueError(
            f"{dataset.name}{left} has {dataset.num_train_identities} people to train on, and a batch takes {people}: "
            f"give it more (whole) training images, or a smaller --train-batch"
        )

    engine.seed_everything(args.seed)
    identities = 1 if dataset is None else max(1, dataset.num_train_identities)  # none in a set only tested on
    model = AlignedReID(identities, args.arch, last_stride=args.last_stride, stripes=args.stripes)
    start_from_weights(args, model)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    print(f"AlignedReID, {args.arch}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters on {device}")

    history, training, tested = [], None, None
    if args.evaluate:
        content = read_checkpoint(args.resume)
        settings = settings_of(args, args.dataset)
        require_settings(content, settings.values, settings.model, args.resume)
        trained_on = read_training_set(content, args.resume)
        load_trained(model, content, args.resume)
    else:
        history, training, tested = train(args, dataset, model, device, gpus)
        trained_on = dataset.name

    results = {
        "dataset": args.dataset if dataset is None else dataset.name,
        "seconds": 0.0,
        "rows": [],
        "skipped": {data.name: data.skipped for data in [dataset, *tests] if data is not None and data.skipped},
        "training": training,
        "machine": describe_machine(device),
        "arguments": vars(args),
    }
    distances = chosen_distances(args.test_distance, args.unaligned)
    options = {"k1": args.k1, "k2": args.k2, "lambda_value": args.lambda_value, "protocols": (args.protocol,)}
    for test in tests:
        features = tested if test is dataset and tested is not None else extract(args, test, model, device)
        if args.save_features:
            save_features(features, args.save_features)
        features = features.normalized()
        evaluations = evaluate(features, distances, reranking=args.reranking, **options)
        print(f"\n{say_domains(trained_on, test.name)}\n{format_table(evaluations)}")
        report_skipped(test)
        about = {"trained_on": trained_on, "checkpoint": args.resume if args.evaluate else None, "test_set": test.name}
        results["rows"] += [about | evaluation.row() for evaluation in evaluations]
        results["seconds"] = time.perf_counter() - start
        write_json(results, folder / ("results_test.json" if args.evaluate else "results.json"))
    if args.test_on:
        print("\n" + format_domains(results["rows"]))
    if args.pictures:
        draw_pictures(args, tests[-1], features, evaluations, history)
    return results


def settings_of(args: argparse.Namespace, dataset_name: str) -> Settings:
    """What checkpoints remember of a run."""
    model, training = ("arch", "last_stride", "height", "width"), ("dataset", "optim")
    kept = ("lr", "weight_decay", "stepsize", "gamma")
    values = {name: getattr(args, name) for name in model + training + kept}
    return Settings(values | {"dataset": dataset_name}, model, training, kept)


def train(
    args: argparse.Namespace, dataset: ReIDDataset, model: nn.Module, device: torch.device, gpus: Sequence[int]
) -> tuple[list[dict], dict, Features | None]:
    """Train a model, from the start or from --resume; last.pth and best.pth are written on the way.

    Returns:
        What `run_epochs` returns.
    """
    folder = Path(args.save_dir)
    optimizer = engine.make_optimizer(args.optim, model, args.lr, args.weight_decay)
    trainer = engine.Trainer(
        model,
        ReIDLoss(args.margin, 0.1 if args.labelsmooth else 0.0, args.htri_only),
        optimizer,
        engine.make_scheduler(optimizer, args.stepsize, args.gamma),
        device=device,
        amp_dtype=engine.mixed_precision(args.amp, device),
        channels_last=args.channels_last,
        parallel=nn.DataParallel(model, gpus) if len(gpus) > 1 else None,
        print_freq=args.print_freq,
        settings=settings_of(args, dataset.name),
    )
    if args.resume:
        trainer.resume(args.resume)
        print(f"resumed from {args.resume} after epoch {trainer.epoch}")
    sampler = RandomIdentitySampler(dataset.train, args.train_batch, args.num_instances, seed=args.seed)
    images = ImageDataset(dataset.train, train_transform(args.height, args.width, raw=True), dataset.read)
    loader = make_loader(args, images, device, args.train_batch, sampler=sampler, drop_last=True)

    prepare_folder(folder, args.resume, (r"best\.pth", r"last\.pth", r"log\.jsonl"))
    log = Log(folder, trainer.epoch)
    return run_epochs(args, trainer, loader, log, lambda: finish_epoch(args, dataset, trainer, log, device))


def finish_epoch(
    args: argparse.Namespace, dataset: ReIDDataset, trainer: engine.Trainer, log: Log, device: torch.device
) -> Features | None:
    """After an epoch: evaluate if it is due, keep the best model, write the log; returns the features evaluated."""
    folder, entry, features = Path(args.save_dir), dict(trainer.means), None
    due = args.eval_step > 0 and trainer.epoch % args.eval_step == 0 and trainer.epoch > args.start_eval
    if due or trainer.epoch == args.max_epoch:
        distance = chosen_distances(args.test_distance, args.unaligned)[:1]
        features = extract(args, dataset, trainer.model, device)
        evaluation = evaluate(features.normalized(), distance, reranking=False, protocols=(args.protocol,))[0]
        entry |= {"rank1": evaluation.rank(1), "mAP": evaluation.mean_ap}
        keep_best(trainer, evaluation, folder)
    log.add({"epoch": trainer.epoch, **entry})
    report_epoch(log.history[-1], trainer.criterion.names, args.max_epoch)
    return features


def extract(args: argparse.Namespace, dataset: ReIDDataset, model: nn.Module, device: torch.device) -> Features:
    """Features of the query and gallery images of a data set."""
    transform = test_transform(args.height, args.width, raw=True)
    loaders = [
        make_loader(args, ImageDataset(samples, transform, dataset.read), device, args.test_batch)
        for samples in (dataset.query, dataset.gallery)
    ]
    return extract_features(model, *loaders, device)


def draw_pictures(
    args: argparse.Namespace,
    dataset: ReIDDataset,
    features: Features,
    evaluations: Sequence[Evaluation],
    history: Sequence[dict],
) -> None:
    """Write alignment.png, ranked.png and curves.png.

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
        distance, title = Distances(features).matrix(name), f"by {DISTANCES[name]} distance"
        draw_rankings(path, features, distance, query_files, gallery_files, size, title)

    def curves(path: Path) -> None:
        draw_curves(path, history, evaluations)

    curves_name = "curves_test" if args.evaluate else "curves"
    draw_all(folder, {"alignment": alignment, "ranked": ranked, curves_name: curves})


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line; bad input ends in one line, not in a traceback."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with one_line_errors(parser, None if args.evaluate else Path(args.save_dir) / "last.pth"):
        return run(args)


if __name__ == "__main__":
    main()
