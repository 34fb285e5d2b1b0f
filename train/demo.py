"""The whole way in one command: draw people, train a system on them, print the papers' tables, leave pictures.

    python -m train.demo --output runs/demo
    python -m train.demo --system mudeep --output runs/demo-mudeep

Training and evaluation are those of train.alignedreid and train.mudeep, run with the flags below.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from train import alignedreid, mudeep
from train.data import make_partial_queries, write_synthetic
from train.files import write_json

# Sizes and settings of the demonstration, and of the same in half a minute to see that it runs (--quick).
PEOPLE = {"train_identities": 150, "test_identities": 100, "images_per_camera": 2, "cameras": 6}
QUICK_PEOPLE = {"train_identities": 12, "test_identities": 8, "images_per_camera": 2, "cameras": 2}
MODEL = ["-a", "resnet18", "--height", "128", "--width", "64", "--last-stride", "1", "-j", "2"]
MODEL += ["--test-distance", "all", "--reranking", "--pictures", "--test-batch", "64", "--channels-last"]
TRAINING = ["--labelsmooth", "--amp", "--train-batch", "64", "--num-instances", "4", "--lr", "6e-4"]
SCHEDULE = ["--max-epoch", "52", "--stepsize", "40"]
QUICK_SCHEDULE = ["--max-epoch", "2", "--stepsize", "1", "--train-batch", "16"]

# The same for MuDeep_v2, which works three times as long at an image. Its backbone starts from random weights here, and
# so learns at the full rate.
MUDEEP_PEOPLE = PEOPLE | {"test_identities": 60}
MUDEEP = ["-a", "resnet18", "--height", "128", "--width", "64", "-j", "2", "--test-batch", "64", "--channels-last"]
MUDEEP += ["--reranking", "--pictures", "--amp", "--backbone-rate", "1", "--lr", "0.05", "--labelsmooth"]
MUDEEP_SCHEDULE = ["--P", "16", "--K", "4", "--repeats", "1", "--max-epoch", "10", "--stepsize", "8"]
MUDEEP_SCHEDULE += ["--eval-step", "2", "--checkpoint-step", "10"]
MUDEEP_QUICK = ["--P", "4", "--K", "2", "--repeats", "1", "--max-epoch", "2", "--stepsize", "1", "--eval-step", "1"]


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line; bad input ends in one line, not in a traceback."""
    parser = argparse.ArgumentParser(prog="python -m train.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--system", default="alignedreid", choices=("alignedreid", "mudeep"))
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write to")
    parser.add_argument("--quick", action="store_true", help="a few people and two epochs: shows that it runs, no more")
    parser.add_argument("--seed", type=alignedreid.whole(0), default=0, help="decides the people and the training")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    args = parser.parse_args(argv)
    with alignedreid.one_line_errors(parser):
        return demonstrate_mudeep(args) if args.system == "mudeep" else demonstrate(args)


def demonstrate(args: argparse.Namespace) -> dict:
    """Run the demonstration and return what results.json holds."""
    start = time.perf_counter()

    print("== 1. Drawing people, and cutting queries for the partial set")
    people = QUICK_PEOPLE if args.quick else PEOPLE
    whole = write_synthetic(args.output / "data", **people, height=128, width=64, seed=args.seed)
    partial = make_partial_queries(whole, args.output / "data" / "synthetic_partial", seed=args.seed)

    print("\n== 2. Training AlignedReID, then finding people it has never seen")
    flags = [*MODEL, "--seed", str(args.seed), "--threads", str(args.threads)]
    schedule = QUICK_SCHEDULE if args.quick else SCHEDULE
    trained = run("synthetic", whole, args.output / "whole", [*flags, *TRAINING, *schedule])

    print("\n== 3. The same with queries that show only a part of the body")
    weights = ["--evaluate", "--resume", str(args.output / "whole" / "last.pth")]
    cut = run("synthetic_partial", partial, args.output / "partial", [*flags, *weights])

    # Alignment shows best where a part is missing; the other pictures are of the whole queries.
    for folder, name in (("partial", "alignment.png"), ("whole", "ranked.png"), ("whole", "curves.png")):
        shutil.copyfile(args.output / folder / name, args.output / name)
    results = {
        "dataset": "synthetic",
        "seconds": time.perf_counter() - start,
        "rows": trained["rows"],
        "partial": cut["rows"],
        "quick": args.quick,
        "people": people,
        "training": trained["training"],
        "machine": trained["machine"],
        "arguments": trained["arguments"],
    }
    write_json(results, args.output / "results.json")
    print(
        f"\nDone in {results['seconds']:.0f} s: {args.output / 'results.json'} and alignment.png, ranked.png, "
        f"curves.png beside it"
    )
    return results


def demonstrate_mudeep(args: argparse.Namespace) -> dict:
    """Run MuDeep_v2's demonstration and return what results.json holds."""
    start = time.perf_counter()

    print("== 1. Drawing people")
    people = QUICK_PEOPLE if args.quick else MUDEEP_PEOPLE
    root = write_synthetic(args.output / "data", **people, height=128, width=64, seed=args.seed)

    print("\n== 2. Training MuDeep_v2, then finding people it has never seen")
    folder = args.output / "run"
    flags = ["-d", "synthetic", "--root", str(root), "--save-dir", str(folder), *MUDEEP]
    flags += ["--seed", str(args.seed), "--threads", str(args.threads)]
    flags += MUDEEP_QUICK if args.quick else MUDEEP_SCHEDULE
    print(f"python -m train.mudeep {' '.join(flags)}")
    trained = mudeep.run(mudeep.make_parser().parse_args(flags))

    for name in ("leader.png", "ranked.png", "curves.png"):
        shutil.copyfile(folder / name, args.output / name)
    results = {**trained, "seconds": time.perf_counter() - start, "quick": args.quick, "people": people}
    write_json(results, args.output / "results.json")
    print(
        f"\nDone in {results['seconds']:.0f} s: {args.output / 'results.json'} and leader.png, ranked.png, curves.png "
        f"beside it"
    )
    return results


def run(dataset: str, root: Path, folder: Path, flags: Sequence[str]) -> dict:
    """Run train.alignedreid on a data set, after printing the command that would do the same."""
    command = ["-d", dataset, "--root", str(root), "--save-dir", str(folder), *flags]
    print(f"python -m train.alignedreid {' '.join(command)}")
    return alignedreid.run(alignedreid.make_parser().parse_args(command))


if __name__ == "__main__":
    main()
