"""make bench-growth: how time and memory of k_reciprocal and rank_metrics grow with the number of images.

    python -m benches.cpu.growth                        # 2k to 50k images, a sixth of them queries
    python -m benches.cpu.growth --images 2000,5000     # some of it, into runs/bench

Each point is a process of its own. Writes benches/results/<machine>-growth.json and .png: the exponent is the slope of
a straight line through the logarithms.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benches import process
from benches.cpu import alone, committed, machine, report
from benches.report import number

IMAGES = (2_000, 5_000, 10_000, 20_000, 50_000)
WIDTH, TOPK, PEOPLE_SHARE = 2048, 100, 0.047  # of the gallery's number, as in Market-1501
LEAST_BYTES = 4e6  # less is pages that come and go: no exponent is fitted to it
CURVES = {  # row: what its size is, given queries and gallery
    "k_reciprocal-msmt17": lambda queries, gallery: (queries, gallery, WIDTH, TOPK),
    "rank_metrics": lambda queries, gallery: (queries, gallery, math.ceil(PEOPLE_SHARE * gallery)),
}
QUANTITIES = {"ms": "time, ms", "workspace_bytes": "memory beyond inputs and result, bytes"}

Figures = dict[str, Any]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The power of the size that the values grow with; None where fewer than two values are to be had."""
    pairs = [(size, value) for size, value in zip(sizes, values, strict=True) if value]
    if len(pairs) < 2:
        return None
    x, y = np.log(pairs).T
    return float(np.polyfit(x, y, 1)[0])


def measure(name: str, images: int) -> Figures:
    """One point of a curve."""
    queries = images // 6
    dimensions = CURVES[name](queries, images - queries)
    arguments = ["--dimensions", ",".join(map(str, dimensions))]
    seconds = "1" if images <= 20_000 else "0"  # one call of the largest is long enough
    found = alone.start(name, *arguments, "--seconds", seconds)
    if "error" in found:
        raise SystemExit(f"{name}, {images:,} images: {found['error']}")
    return {"images": images, "dimensions": dimensions, **{key: found[key] for key in QUANTITIES}}


def fitted(points: list[Figures]) -> Figures:
    """The curve's points and its exponents."""
    sizes = [point["images"] for point in points]
    memory = [point["workspace_bytes"] if (point["workspace_bytes"] or 0) >= LEAST_BYTES else None for point in points]
    times = [point["ms"] for point in points]
    return {"points": points, "ms_exponent": exponent(sizes, times), "memory_exponent": exponent(sizes, memory)}


def plot(results: Figures, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (quantity, label), fit in zip(axes, QUANTITIES.items(), ("ms_exponent", "memory_exponent"), strict=True):
        for name, curve in results["curves"].items():
            points = [(point["images"], point[quantity]) for point in curve["points"] if point[quantity]]
            power = "" if curve[fit] is None else f", grows as $N^{{{curve[fit]:.2f}}}$"
            axis.loglog(*zip(*points, strict=True), "o-", label=f"{name.partition('-')[0]}{power}")
        sizes = sorted({point["images"] for curve in results["curves"].values() for point in curve["points"]})
        axis.set(xlabel="images N, a sixth of them queries", ylabel=label)
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set_xticks([], minor=True)
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.cpu.growth", description=__doc__.splitlines()[0])
    parser.add_argument("--images", default=",".join(map(str, IMAGES)), help="numbers of images (default: %(default)s)")
    args = parser.parse_args(argv)
    images = [int(count) for count in args.images.split(",")]
    folder = committed.FOLDER if tuple(images) == IMAGES else committed.ASIDE
    folder.mkdir(parents=True, exist_ok=True)
    results: Figures = {"commit": process.commit(), "machine": machine.slug(), "threads": machine.THREADS, "curves": {}}
    for name in CURVES:
        points = []
        for count in images:
            points.append(measure(name, count))
            memory = points[-1]["workspace_bytes"]
            beyond = "" if memory is None else f", {number(memory / 1e6)} MB beyond inputs and result"
            print(f"{name}, {count:,} images: {number(points[-1]['ms'])} ms{beyond}", flush=True)
        results["curves"][name] = fitted(points)
    print(report.growth(results, results["machine"]))
    path = folder / f"{machine.slug()}-growth.json"
    process.write(path, json.dumps(results, indent=1) + "\n")
    plot(results, path.with_suffix(".png"))
    if folder == committed.FOLDER:
        report.write_readme()
    print(f"written: {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    sys.exit(main())
