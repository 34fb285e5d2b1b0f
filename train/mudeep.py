"""Train MuDeep_v2, test it, and test it on data sets it has not been trained on.

    python -m train.mudeep -d market1501 --root data --weights resnet50.pth --save-dir log/market
    python -m train.mudeep -d market1501 --root data --evaluate market_160.pkl --reranking
    python -m train.mudeep -d market1501 --root data --evaluate log/market
    python -m train.mudeep -d market1501 --root data --evaluate market_160.pkl --test-on dukemtmcreid cuhk03np_detected
    torchrun --nproc-per-node 2 -m train.mudeep -d market1501 --root data --weights resnet50.pth

--evaluate takes one checkpoint, published or our own, or a folder, whose checkpoints are tested in the order of their
epochs. The second line of sizes in the paper is --width 128.
"""

import argparse
import contextlib
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reidops_models import MuDeepV2
from reidops_models.backbones import RESNETS
from reidops_models.checkpoints import find_state_dict, read_checkpoint
from train import engine, processes
from train.data import ImageDataset, RandomIdentitySampler, ReIDDataset, erasing_transform, test_transform
from train.domains import checkpoints_in, format_domains, read_data
from train.evaluate import DRAWS, PROTOCOLS, Distances, Evaluation, evaluate, format_table
from train.features import Features, FlipAveraged, extract_features, save_features
from train.files import write_json
from train.images import add_image_flags, open_images, report_skipped
from train.leader import draw_leader
from train.log import Log, describe_machine
from train.losses import MuDeepLoss
from train.opt_text import OptText
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
    positive,
    prepare_folder,
    report_epoch,
    run_epochs,
    settle_processor,
    start_from_weights,
    whole,
)
from train.settings import Settings, read_training_set, require_settings
from train.visualize import draw_curves, draw_rankings


def make_parser() -> argparse.ArgumentParser:
    """Every flag; the defaults are the published program's settings."""
    parser = argparse.ArgumentParser(prog="python -m train.mudeep", description="Train and test MuDeep_v2.")
    add_data_flags(parser, height=384, width=192, workers=4)
    add_image_flags(parser.add_argument_group("images").add_argument)

    add = parser.add_argument_group("model").add_argument
    add("-a", "--arch", default="resnet50", choices=RESNETS)
    add_weights_flags(add)
    add("--num-scales", type=int, default=3, choices=(1, 2, 3))
    add("--no-attention", action="store_true", help="without the leader and its attention, for comparison")
    add("--num-classes", type=whole(1), help="how many training identities there should be (default: as there are)")
    add("--no-recompute", action="store_true", help="keep what backward could compute again: more memory")

    add = parser.add_argument_group("training").add_argument
    add("--P", type=whole(2), default=12, help="identities in a batch, of all processes together (default 12)")
    add("--K", type=whole(1), default=6, help="images of an identity in a batch (default 6)")
    add("--repeats", type=whole(1), default=3, help="passes over the identities in an epoch (default 3)")
    add("--max-epoch", type=whole(0), default=160)
    add("--test-batch", type=whole(1), default=64)
    add("--lr", type=positive, default=0.09, help="learning rate of attention, bottlenecks and classifiers")
    add("--backbone-rate", type=float, default=0.1, help="that of backbone and leader, as a part of it (default 0.1)")
    add("--stepsize", type=int, default=80, help="epochs between two decays of the learning rate; 0 for none")
    add("--gamma", type=float, default=0.1, help="factor of a decay")
    add("--weight-decay", type=float, default=5e-4)
    add("--margin", type=float, default=1.0, help="margin of the triplet losses")
    add("--labelsmooth", action="store_true", help="label smoothing of 0.1")
    add("--erasing", type=float, default=0.5, help="probability of random erasing (default 0.5)")
    add("--seed", type=whole(0), default=12345)
    add("--resume", metavar="PATH", help="go on from a last.pth, or from a .pkl of this program")
    add_precision_flags(add)

    add = parser.add_argument_group("evaluation").add_argument
    add("--evaluate", metavar="PATH", help="only test: a checkpoint, or every one in a folder")
    add_test_sets_flag(add)
    add(
        "--protocol",
        default="both",
        choices=(*PROTOCOLS, "both"),
        help=f"how ranks are scored (default: both, mudeep and market1501); {DRAWS}",
    )
    add("--eval-step", type=int, default=5, help="evaluate every so many epochs; -1 only after the last")
    add_reranking_flags(add)
    add("--pictures", action="store_true", help="write leader.png, ranked.png, curves.png (of the last test)")

    add = parser.add_argument_group("machine").add_argument
    add("--save-dir", default="log", help="where everything is written (default: log)")
    add("--name", default="mudeep", help="of the checkpoints NAME_EPOCH.pkl (default: mudeep)")
    add("--checkpoint-step", type=whole(1), default=10, help="epochs between two of them (default 10)")
    add("--print-freq", type=whole(1), default=10, help="batches between two updates of the progress bar's figures")
    add("--use-cpu", action="store_true")
    add("--gpu-devices", default="0", help="GPU index; torchrun gives each process its own")
    add("--threads", type=whole(0), default=0, help="CPU threads (default: torch's choice)")
    return parser


def run(args: argparse.Namespace, dataset: ReIDDataset | None = None, device: torch.device | None = None) -> dict:
    """Train and test as the flags say.

    Args:
        args: what `make_parser` parsed.
        dataset: the data, instead of what --dataset and --root name.
        device: where to work; None for what the flags say.

    Returns:
        What is written to results.json (results_test.json with --evaluate):
        {"dataset", "seconds", "rows", "skipped", "training", "machine", "arguments"}.
    """
    start = time.perf_counter()
    settle_processor(args)
    check_flags(args)
    device = pick_device(args)[0] if device is None else device
    folder = Path(args.save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = checkpoints_in(args.evaluate) if args.evaluate else [(None, args.max_epoch)]
    dataset, tests = read_data(args, dataset)
    if args.save_features and len(checkpoints) * len(tests) > 1:
        raise ValueError(
            f"--save-features writes the features of one checkpoint on one data set, and there are {len(checkpoints)} "
            f"checkpoints and {len(tests)} data sets"
        )
    dataset, tests = open_images(args, dataset, tests)

    engine.seed_everything(args.seed)
    model = make_model(args, dataset)
    start_from_weights(args, model)
    model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"MuDeep_v2, {args.arch}, {args.num_scales} scales: {parameters:.1f} M parameters on {device}")
    history, training, tested = ([], None, None) if args.evaluate else train(args, dataset, model, device)

    results = {
        "dataset": args.dataset if dataset is None else dataset.name,
        "seconds": 0.0,
        "rows": [],
        "skipped": {data.name: data.skipped for data in [dataset, *tests] if data is not None and data.skipped},
        "training": training,
        "machine": describe_machine(device),
        "arguments": vars(args),
    }
    for checkpoint, epoch in checkpoints:
        trained_on = dataset.name if checkpoint is None else load(args, model, checkpoint, dataset)
        for test in tests:
            features = tested if test is dataset and tested is not None else extract(args, test, model, device)
            if processes.rank() > 0:
                continue
            print(f"\n{test.name}, " + (f"after epoch {epoch}" if checkpoint is None else str(checkpoint)))
            evaluations = score(args, features)
            print(format_table(evaluations))
            report_skipped(test)
            about = {"trained_on": trained_on, "checkpoint": checkpoint and str(checkpoint), "epoch": epoch}
            results["rows"] += [about | {"test_set": test.name} | evaluation.row() for evaluation in evaluations]
            results["seconds"] = time.perf_counter() - start
            write_json(results, folder / ("results_test.json" if args.evaluate else "results.json"))
    if processes.rank() > 0:
        return {}
    if args.test_on:
        print("\n" + format_domains(results["rows"]))
    if args.save_features:
        save_features(features, args.save_features)
    if args.pictures:
        draw_pictures(args, tests[-1], model, device, features, evaluations, history)
    return results


def check_flags(args: argparse.Namespace) -> None:
    """Refuse flags that contradict each other or cannot be followed (ValueError)."""
    if args.evaluate and args.resume:
        raise ValueError("--evaluate tests a checkpoint and --resume goes on training one: give one of them")
    if "," in args.gpu_devices:
        raise ValueError(f"--gpu-devices {args.gpu_devices}: several GPUs work through torchrun, each with one of them")
    if not re.fullmatch(r"[\w.-]+", args.name):
        raise ValueError(f"--name should be letters, digits, '.', '-' and '_', got {args.name!r}")
    if Path(args.save_dir).exists() and not Path(args.save_dir).is_dir():
        raise ValueError(f"--save-dir should be a folder, got the file {args.save_dir}")


def make_model(args: argparse.Namespace, dataset: ReIDDataset | None) -> MuDeepV2:
    """The network of the flags, with a class for every training identity."""
    identities = 1 if dataset is None else dataset.num_train_identities
    if args.num_classes is not None and dataset is not None and args.num_classes != identities:
        raise ValueError(
            f"--num-classes is {args.num_classes}, and {dataset.name} has {identities} training identities: look "
            f"whether --root is the right folder, or leave --num-classes out"
        )
    if not args.evaluate and identities < args.P:
        raise ValueError(
            f"--P {args.P} identities in a batch need as many to train on: {dataset.name} has {identities}"
        )
    return MuDeepV2(
        max(1, identities),
        args.num_scales,
        attention=not args.no_attention,
        backbone=args.arch,
        recompute=not args.no_recompute,
    )


def settings_of(args: argparse.Namespace, dataset_name: str) -> Settings:
    """What checkpoints remember of a run."""
    model = ("arch", "num_scales", "no_attention", "height", "width")
    training, kept = ("dataset",), ("lr", "backbone_rate", "weight_decay", "stepsize", "gamma")
    values = {name: getattr(args, name) for name in model + training + kept}
    return Settings(values | {"dataset": dataset_name}, model, training, kept)


def load(args: argparse.Namespace, model: MuDeepV2, path: Path, dataset: ReIDDataset | None) -> str | None:
    """Load what a checkpoint has for testing, which is all but its classifiers.

    Returns:
        The data set it was trained on, if it says so.

    Raises:
        ValueError: it does not fit the model, or was trained on other identities than the data set has to train on.
    """
    content, settings = read_checkpoint(path), settings_of(args, args.dataset)
    require_settings(content, settings.values, settings.model, path)
    state = find_state_dict(content, path)
    classes = len(state.get("scale1.classifier.fc.bias", ()))
    wanted = args.num_classes or (0 if dataset is None else dataset.num_train_identities)
    if classes and wanted and classes != wanted:
        where = "--num-classes says" if args.num_classes else f"{dataset.name} has"
        raise ValueError(
            f"checkpoint {path} was trained on {classes} identities, and {where} {wanted}: look whether --dataset and "
            f"--root name its training set; other data sets are tested with --test-on"
        )
    load_trained(model, content, path)
    return read_training_set(content, path)


def train(
    args: argparse.Namespace, dataset: ReIDDataset, model: MuDeepV2, device: torch.device
) -> tuple[list[dict], dict, Features | None]:
    """Train a model, from the start or from --resume; checkpoints, log and opt.txt are written on the way.

    Returns:
        What `run_epochs` returns.
    """
    folder = Path(args.save_dir)
    parallel = None
    if processes.together():
        parallel = DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    optimizer = engine.make_mudeep_optimizer(model, args.lr, args.weight_decay, args.backbone_rate)
    trainer = engine.Trainer(
        model,
        MuDeepLoss(args.margin, 0.1 if args.labelsmooth else 0.0),
        optimizer,
        engine.make_scheduler(optimizer, args.stepsize, args.gamma),
        device=device,
        amp_dtype=engine.mixed_precision(args.amp, device),
        channels_last=args.channels_last,
        parallel=parallel,
        print_freq=args.print_freq,
        settings=settings_of(args, dataset.name),
    )
    if args.resume:
        trainer.resume(args.resume)
        print(f"resumed from {args.resume} after epoch {trainer.epoch}")
    parts = {"part": processes.rank(), "parts": processes.count()}
    sampler = RandomIdentitySampler(
        dataset.train, args.P * args.K, args.K, repeats=args.repeats, seed=args.seed, **parts
    )
    images = ImageDataset(dataset.train, erasing_transform(args.height, args.width, args.erasing), dataset.read)
    batch_size = args.P * args.K // processes.count()
    loader = make_loader(args, images, device, batch_size, sampler=sampler, drop_last=True)

    files_of_a_run = (r"best\.pth", r"last\.pth", r"log\.jsonl", r"opt\.txt", rf"{re.escape(args.name)}_\d+\.pkl")
    if processes.rank() == 0:
        prepare_folder(folder, args.resume, files_of_a_run)
    processes.wait()
    log, text = Log(folder, trainer.epoch), OptText(folder / "opt.txt", vars(args), trainer.epoch)
    return run_epochs(args, trainer, loader, log, lambda: finish_epoch(args, dataset, trainer, log, text))


def finish_epoch(
    args: argparse.Namespace, dataset: ReIDDataset, trainer: engine.Trainer, log: Log, text: OptText
) -> Features | None:
    """After an epoch: test the model if it is due, write checkpoint, log and opt.txt; returns the features tested."""
    folder, entry, features = Path(args.save_dir), dict(trainer.means), None
    if (args.eval_step > 0 and trainer.epoch % args.eval_step == 0) or trainer.epoch == args.max_epoch:
        features = extract(args, dataset, trainer.model, trainer.device)
        if processes.rank() == 0:
            evaluation = evaluate(features, ("cosine",), reranking=False, protocols=protocols_of(args)[:1])[0]
            entry |= {"rank1": evaluation.rank(1), "mAP": evaluation.mean_ap}
            text.add(trainer.epoch, evaluation)
            keep_best(trainer, evaluation, folder)
    if trainer.epoch % args.checkpoint_step == 0:
        trainer.save(folder / f"{args.name}_{trainer.epoch}.pkl")
    log.add({"epoch": trainer.epoch, **entry})
    report_epoch(log.history[-1], trainer.criterion.names, args.max_epoch)
    processes.wait()
    return features


def extract(args: argparse.Namespace, dataset: ReIDDataset, model: nn.Module, device: torch.device) -> Features:
    """Test features of the query and gallery images: the mean over image and mirror image, of unit length."""
    transform = test_transform(args.height, args.width, bicubic=True, raw=True)
    loaders = [
        make_loader(args, ImageDataset(processes.share(samples), transform, dataset.read), device, args.test_batch)
        for samples in (dataset.query, dataset.gallery)
    ]
    return extract_features(FlipAveraged(model), *loaders, device).normalized()


def protocols_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The protocols of the table, that of the published program first."""
    return ("mudeep", "market1501") if args.protocol == "both" else (args.protocol,)


def score(args: argparse.Namespace, features: Features) -> list[Evaluation]:
    """The rows of a table."""
    options = {"k1": args.k1, "k2": args.k2, "lambda_value": args.lambda_value}
    return evaluate(features, ("cosine",), reranking=args.reranking, protocols=protocols_of(args), **options)


def draw_pictures(
    args: argparse.Namespace,
    dataset: ReIDDataset,
    model: MuDeepV2,
    device: torch.device,
    features: Features,
    evaluations: Sequence[Evaluation],
    history: Sequence[dict],
) -> None:
    """Write leader.png, ranked.png and curves.png (curves_test.png with --evaluate)."""
    size, query_files, gallery_files = (args.height, args.width), files(dataset.query), files(dataset.gallery)

    def leader(path: Path) -> None:
        chosen = torch.linspace(0, len(query_files) - 1, min(4, len(query_files))).round().long().tolist()
        images = ImageDataset([dataset.query[index] for index in chosen], test_transform(*size, bicubic=True))
        draw_leader(path, model, torch.stack([image for image, *_ in images]).to(device))

    def ranked(path: Path) -> None:
        distance = Distances(features).matrix("cosine")
        draw_rankings(path, features, distance, query_files, gallery_files, size, "by cosine distance")

    def curves(path: Path) -> None:
        draw_curves(path, history, [one for one in evaluations if one.protocol == evaluations[0].protocol])

    curves_name = "curves_test" if args.evaluate else "curves"
    pictures = {"ranked": ranked, curves_name: curves}
    draw_all(Path(args.save_dir), pictures if args.no_attention else {"leader": leader, **pictures})


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line; bad input ends in one line, not in a traceback."""
    parser = make_parser()
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        stack.enter_context(one_line_errors(parser, None if args.evaluate else Path(args.save_dir) / "last.pth"))
        device = stack.enter_context(processes.started(args.use_cpu))
        if processes.rank() > 0:  # the first process speaks for all
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        return run(args, device=device)


if __name__ == "__main__":
    main()
