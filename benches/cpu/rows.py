"""A row of the processor's table. Each operator's rows stand in its bench_<op>.py, beside what they run."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import reidops
from benches import rows
from benches.cases import Case

OPS = ("dmli_matrix", "knn", "k_reciprocal", "rank_metrics", "batch_hard", "dmli", "channel_attention")
SIZES = ("full", "part", "small")  # the table's; a second's worth, for threads and SIMD levels; to see that it runs
HIGHEST = "reidops, highest"


class Row(NamedTuple):
    """`build` gives a Case for the precision and the size's dimensions; `work` and `shape` are given the dimensions."""

    name: str
    op: str
    build: Callable[..., Case]
    precision: str
    shape: str
    work: Callable[..., rows.Work]
    bars: tuple[rows.Bar, ...]
    sizes: dict[str, tuple[int, ...]]
    once: bool = False  # one call is long enough; a quick run leaves it out

    def case(self, size: str) -> Case:
        return self.build(self.precision, *self.sizes[size])

    def shape_text(self, size: str = "full") -> str:
        return self.shape.format(*self.sizes[size])


def every() -> list[Row]:
    """The rows of all operators' files, in their order."""
    return [row for op in OPS for row in importlib.import_module(f"benches.bench_{op}").ROWS]


def one_an_operator() -> list[Row]:
    return [importlib.import_module(f"benches.bench_{op}").ROWS[0] for op in OPS]


def named(name: str) -> Row:
    return next(row for row in every() if row.name == name)


def select(words: str | None) -> set[str]:
    """Names that are or contain one of the comma-separated words; None: all."""
    names = [row.name for row in every()]
    if words is None:
        return set(names)
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [word for word in wanted if not any(word in name for name in names)]
    if unknown or not wanted:
        raise ValueError(
            f"--only should name parts of these rows: {', '.join(names)}; got {', '.join(unknown) or 'nothing'}"
        )
    return {name for name in names if any(word == name if word in names else word in name for word in wanted)}


# ---------------------------------------------------------------------------------------------- bars


def has_bfloat16() -> bool:
    """Whether our kernels multiply bfloat16 numbers here."""
    return reidops.build_info()["simd"] in ("avx512_bf16", "amx")


def bfloat16_speed(bound: float) -> rows.Bar:
    """How many times as fast as our own float32, where the processor can be."""
    bar = rows.speed(HIGHEST, bound)
    return bar._replace(value=lambda figures: bar.value(figures) if has_bfloat16() else None)


def map_kept(bound: float) -> tuple[rows.Bar, ...]:
    """How far mAP may move, on random features and, where REIDOPS_DATA is set, on a network's."""
    return tuple(
        rows.check(name, bound, f"points of mAP{where}")
        for name, where in (("map_moved", ""), ("map_moved_real", " on real features"))
    )


# ---------------------------------------------------------------------------------------------- limits and verdicts


def limit(row: Row, size: str, ceilings: dict[str, float]) -> dict[str, Any]:
    """The time of the least work at the speeds measured on this machine: the longer of its two parts, and which."""
    work = row.work(*row.sizes[size])
    gflops = ceilings["bf16_gflops" if row.precision == "medium" else "fp32_gflops"]
    copied = ceilings["copy_gb_s"]
    parts = [(work.bytes / copied / 1e6, f"{rows.amount(work.bytes)}B at {copied:.3g} GB/s")]
    if work.flops:
        parts.append((work.flops / gflops / 1e6, f"{rows.amount(work.flops)}FLOP at {gflops:,.0f} GFLOP/s"))
    ms, how = max(parts)
    return {"ms": ms, "how": how}


def judged(row: Row, size: str, figures: rows.Figures, ceilings: dict[str, float]) -> rows.Figures:
    """The figures with the limit, ours over it and over each peer, and the bars' verdicts."""
    least, ours = limit(row, size, ceilings), figures.get("ours_ms")
    bars = [bar.judge(figures) for bar in row.bars]
    peers = {name: peer["ms"] for name, peer in figures.get("peers", {}).items() if "ms" in peer}
    return {
        **figures,
        "limit": least,
        "ratio": ours / least["ms"] if ours else None,
        "over": {name: ours / ms for name, ms in peers.items()} if ours else {},
        "bars": bars,
    }
