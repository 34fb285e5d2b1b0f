"""Calls every operator, forward and backward, at small sizes: what compute-sanitizer watches.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -m benches.gpu_sanitize

Without torch's cache every tensor is an allocation of its own, so that one step beyond its end is noticed. Sizes are
odd, and on either side of the tiles of kernels.

Each call's number and name is printed before it, so that the log tells where a process died; `--first` goes on after
that call. Racecheck has died on an H100 (CUDA 13.0, driver 580) after a minute: "The Sanitizer failed to handle a
hardware exception", where memcheck passes. That log did not name the call yet, and we found no mention of the error,
nor of an instruction of ours that racecheck refuses, in NVIDIA's manual and release notes as far as we could search
them. Two things are out of the ordinary for a tool that keeps notes of every access to shared memory: copies that
bypass registers (cuda_pipeline.h's cp.async: dmli), for whose bulk form others have seen hazards reported that are
none; and blocks with more than 48 KB of it. The kernel that had both then, of channel_attention in bfloat16, is gone.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch

import reidops
from benches.inputs import integers, normal

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
PRECISIONS = ("highest", "high", "medium")


def differentiated(function: Callable, *leaves: torch.Tensor) -> Callable[[], None]:
    """A call of the function and of its gradient."""

    def run() -> None:
        inputs = [leaf.detach().requires_grad_() for leaf in leaves]
        results = function(*inputs)
        results = [results] if isinstance(results, torch.Tensor) else results
        sum(result.sum() for result in results if result.is_floating_point()).backward()

    return run


def training_calls(device: torch.device) -> Iterator[tuple[str, Callable]]:
    """Name and call of every operator with a gradient."""

    def values(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return normal(*shape, device=device, dtype=dtype, seed=sum(shape))

    for dtype in DTYPES:
        kind = str(dtype)[6:]
        for m, n, d in ((1, 1, 1), (37, 65, 33), (130, 9, 260)):
            x, y = values(m, d, dtype=dtype), values(n, d, dtype=dtype)
            yield f"euclidean_distance {m} x {n} x {d} {kind}", differentiated(reidops.euclidean_distance, x, y)
        for b, m, n, d in ((1, 1, 1, 3), (5, 8, 8, 128), (3, 9, 17, 35), (2, 8, 8, 300)):
            x, y = values(b, m, d, dtype=dtype), values(b, n, d, dtype=dtype)
            yield f"dmli {b}, {m} x {n} x {d} {kind}", differentiated(reidops.dmli, x, y)
            yield (
                f"shortest_path {b}, {m} x {n} {kind}",
                differentiated(reidops.shortest_path, values(b, m, n, dtype=dtype)),
            )
        unaligned = [values(5, 8, 33, dtype=dtype) for _ in range(2)]
        yield f"dmli, unaligned {kind}", differentiated(lambda x, y: reidops.dmli(x, y, aligned=False), *unaligned)
        for b, d in ((2, 1), (64, 129), (131, 20)):
            labels = torch.arange(b, device=device) // 2 if b > 2 else torch.arange(b, device=device)
            features, distance = values(b, d, dtype=dtype), values(b, b, dtype=dtype)
            yield f"batch_hard {b} x {d} {kind}", differentiated(lambda f, p=labels: reidops.batch_hard(f, p), features)
            call = differentiated(lambda f, p=labels: reidops.batch_hard_from_distance(f, p), distance)
            yield f"batch_hard_from_distance {b} {kind}", call
        for b, c, length, width in ((1, 1, 1, 1), (2, 70, 33, 33), (1, 129, 192, 192), (1, 65, 288, 288),
                                    (2, 70, 33, 3), (1, 65, 288, 3), (1, 129, 192, 17), (1, 33, 40, 200)):  # fmt: skip
            maps = [values(b, c, columns, dtype=dtype) * length**-0.25 for columns in (length, length, width)]
            name = f"channel_attention {b} x {c} x {length}, {width} {kind}"
            yield name, differentiated(reidops.channel_attention, *maps)


def evaluation_calls(device: torch.device) -> Iterator[tuple[str, Callable]]:
    """Name and call of every operator without a gradient."""
    for precision in PRECISIONS:
        for m, n, s, d in ((1, 1, 1, 1), (5, 37, 8, 36), (18, 35, 7, 130)):
            x, y = normal(m, s, d, device=device), normal(n, s, d, device=device, seed=1)
            name = f"dmli_matrix {m} x {n}, {s} x {d} {precision}"
            yield name, lambda x=x, y=y, p=precision: reidops.dmli_matrix(x, y, precision=p)
        for m, n, d, k in ((1, 1, 1, 1), (33, 260, 37, 21), (130, 131, 64, 100)):
            x, y = normal(m, d, device=device), normal(n, d, device=device, seed=1)
            name = f"knn {m} x {n} x {d}, {k} {precision}"
            yield name, lambda x=x, y=y, k=k, p=precision: reidops.knn(x, y, k, precision=p)
        x, y = normal(19, 35, device=device), normal(150, 35, device=device, seed=1)
        local = normal(19, 8, 20, device=device), normal(150, 8, 20, device=device, seed=1)
        for variant in ("zhong2017", "torchreid", "jaccard"):
            for topk in (None, 10):
                options = {"variant": variant, "topk": topk, "precision": precision}
                yield f"k_reciprocal {options}", lambda x=x, y=y, o=options: reidops.k_reciprocal(x, y, **o)
        both = {"query_local": local[0], "gallery_local": local[1], "precision": precision}
        yield f"k_reciprocal, local too {precision}", lambda x=x, y=y, o=both: reidops.k_reciprocal(x, y, **o)
    if device.type == "cuda":  # more than one tile of products: two streams
        points, local = normal(4000, 16, device=device), normal(500, 8, 16, device=device)
        labels = torch.arange(4000, device=device) // 4
        for precision in ("highest", "high"):
            yield f"knn 4,000 {precision}", lambda p=precision: reidops.knn(points, points, 5, precision=p)
            yield f"dmli_matrix 500 {precision}", lambda p=precision: reidops.dmli_matrix(local, local, precision=p)
        yield "batch_hard 4,000", lambda: reidops.batch_hard(points, labels)
    distances = [normal(*shape, device=device).abs() for shape in ((19, 150), (19, 19), (150, 150))]
    yield "k_reciprocal_from_distance", lambda: reidops.k_reciprocal_from_distance(*distances)
    yield "shortest_path_indices", lambda: reidops.shortest_path_indices(normal(9, 17, device=device))
    for m, n in ((1, 1), (9, 333), (3, 5000)):
        for protocol in ("market1501", "cuhk03", "mudeep"):
            distance = normal(m, n, device=device)
            people = [integers(2, count, device=device, seed=seed) for seed, count in enumerate((m, n, m, n))]
            people[1][0] = people[0][0]  # a match, and seen by another camera
            people[3][0] = 1 - people[2][0]
            name = f"rank_metrics {m} x {n} {protocol}"
            yield name, lambda d=distance, p=people, o=protocol: reidops.rank_metrics(d, *p, protocol=o, num_draws=3)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benches.gpu_sanitize", description=__doc__.splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--first", type=int, default=0, help="number of the call to begin with (default: %(default)s)")
    args = parser.parse_args(argv)
    device, begin = args.device, time.monotonic()
    count = {"called": 0, "without a kernel": 0, "failed": 0}
    calls = itertools.chain(training_calls(device), evaluation_calls(device))
    for number, (name, call) in enumerate(calls):
        if number < args.first:
            continue
        print(f"call {number}: {name} ({time.monotonic() - begin:.1f} s)", flush=True)
        try:
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            count["called"] += 1
        except NotImplementedError:
            count["without a kernel"] += 1
            print(f"no kernel: {name}", flush=True)
        except Exception as error:
            count["failed"] += 1
            print(f"failed: {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    print(", ".join(f"{number} {what}" for what, number in count.items()))
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
