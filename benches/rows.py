"""The GPU's table: of every row the operator, the sizes, the least work there is to do, and the bars to meet.

Only numbers and words; what is run stands in cases.py, under the operator's name.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

SIZES = ("full", "small")  # the table's; to see that it runs

GEMM = "GEMM"
METRIC_LEARNING = "pytorch-metric-learning"
PUBLISHED_NUMPY = "published NumPy"
PUBLISHED_TORCH = "published, op by op in PyTorch"
BMM = "bmm, softmax, bmm"
FAISS = "faiss IndexFlatL2"
TORCHREID = "torchreid's Cython"
HALF_GEMM = "x half the GEMM"

RATES = {  # precision: the ceiling its products run at, and how many such products one of its products takes
    "medium": ("bf16_tflops", 1),
    "high": ("tf32_tflops", 1),
    "highest": (
        "tf32_tflops",
        3,
    ),  # a float32 product in three tf32 ones: two terms for each factor, the least left out
    "bfloat16": ("bf16_tflops", 1),
    "float32": ("fp32_tflops", 1),  # outside the tensor cores: from differences, where digits are not to be lost
}

Figures = dict[str, Any]


class Work(NamedTuple):
    """What no implementation can do without."""

    flops: float
    bytes: float  # of memory: every input read once for each pass, every result written once
    launches: int = 1


class Bar(NamedTuple):
    """What a row's figures are to meet: `value` of them, None where it was not measured, against `bound`."""

    sense: str  # "<=" or ">="
    bound: float
    unit: str
    value: Callable[[Figures], float | None]

    def text(self) -> str:
        return f"{self.sense} {self.bound:,g} {self.unit}"

    def judge(self, figures: Figures) -> dict[str, Any]:
        value = self.value(figures)
        met = None if value is None else value <= self.bound if self.sense == "<=" else value >= self.bound
        return {"bar": self.text(), "value": value, "met": met}


class Row(NamedTuple):
    """One row; `work` and `shape` are given the size's dimensions, in order."""

    name: str
    op: str  # the function of cases.py that builds it
    precision: str
    shape: str
    work: Callable[..., Work]
    bars: tuple[Bar, ...]
    sizes: dict[str, tuple[int, ...]]
    time_limit: float = 40  # seconds for the whole row, peers and checks included

    def shape_text(self, size: str = "full") -> str:
        return self.shape.format(*self.sizes[size])


# ---------------------------------------------------------------------------------------------- bars


def milliseconds(bound: float) -> Bar:
    return Bar("<=", bound, "ms", lambda figures: figures.get("ours_ms"))


def megabytes(bound: float) -> Bar:
    def value(figures: Figures) -> float | None:
        used = figures.get("workspace_bytes")
        return None if used is None else used / 1e6

    return Bar("<=", bound, "MB beyond inputs and result", value)


def launches(bound: int) -> Bar:
    def value(figures: Figures) -> int | None:
        names = figures.get("launches")
        return len(names) if names and isinstance(names, list) else None  # empty: the profiler saw nothing

    return Bar("<=", bound, "launches", value)


def check(name: str, bound: float, unit: str) -> Bar:
    return Bar("<=", bound, unit, lambda figures: figures.get("checks", {}).get(name))


def ratio(peer: str, bound: float, share: float = 1.0, unit: str | None = None) -> Bar:
    """Our time over `share` of the peer's."""

    def value(figures: Figures) -> float | None:
        ours, theirs = figures.get("ours_ms"), figures.get("peers", {}).get(peer, {}).get("ms")
        return ours / (theirs * share) if ours and theirs else None

    return Bar("<=", bound, unit or f"x {peer}", value)


def speed(peer: str, bound: float) -> Bar:
    """How many times as fast as the peer."""

    def value(figures: Figures) -> float | None:
        inverse = ratio(peer, 0).value(figures)
        return 1 / inverse if inverse else None

    return Bar(">=", bound, f"x the speed of {peer}", value)


# ---------------------------------------------------------------------------------------------- work


def dmli_matrix_work(queries: int, gallery: int, stripes: int, width: int) -> Work:
    values = (queries + gallery) * stripes * width + queries * gallery
    return Work(2.0 * queries * gallery * stripes**2 * width, 4.0 * values)


def knn_work(images: int, k: int, width: int) -> Work:
    return Work(1.0 * images**2 * width, 4.0 * images * width + 12.0 * images * k)  # the distances are symmetric


def k_reciprocal_work(queries: int, gallery: int, width: int, topk: int) -> Work:
    images, results = queries + gallery, 12.0 * queries * topk if topk else 4.0 * queries * gallery
    return Work(1.0 * images**2 * width, 4.0 * images * width + results)


def rank_metrics_work(queries: int, gallery: int) -> Work:
    return Work(0.0, 4.0 * queries * gallery)


def batch_hard_work(batch: int, width: int) -> Work:
    return Work(1.0 * batch**2 * width, 4.0 * batch * width)


def batch_hard_training_work(batch: int, width: int) -> Work:
    return Work(1.0 * batch**2 * width, 3 * 4.0 * batch * width, launches=2)  # features twice, gradient once


def dmli_work(batch: int, stripes: int, width: int) -> Work:
    values = 6.0 * batch * stripes * width  # both images twice, both gradients once
    return Work(2 * 3.0 * batch * stripes**2 * width, 4 * values, launches=2)


def channel_attention_work(batch: int, channels: int, length: int) -> Work:
    values = 12.0 * batch * channels * length  # forward 3 in, 1 out; backward 5 in, 3 out
    return Work(14.0 * batch * channels**2 * length, 2 * values, launches=2)  # 2 products, then 5 with the recomputed


def attended_averages_work(batch: int, channels: int, length: int) -> Work:
    values = 8.0 * batch * channels * length  # forward 3 in; backward 2 in, 3 out; averages hardly count
    return Work(8.0 * batch * channels**2 * length, 2 * values, launches=2)  # 1 product, then 3 with the recomputed


# ---------------------------------------------------------------------------------------------- the table


def _dmli_matrix(width: int, precision: str, *bars: Bar) -> Row:
    sizes = {"full": (3368, 15913, 8, width), "small": (3, 5, 8, 16)}
    shape = "{:,} x {:,}, {} x {}"
    return Row(f"dmli_matrix-{width}-{precision}", "dmli_matrix", precision, shape, dmli_matrix_work, bars, sizes)


def _k_reciprocal(name: str, precision: str, full: tuple[int, ...], *bars: Bar, **more: Any) -> Row:
    sizes = {"full": full, "small": (7, 40, 16, min(full[-1], 5))}
    shape = "{:,} + {:,}, d = {}" + (", topk = {}" if full[-1] else "")
    return Row(f"k_reciprocal-{name}", "k_reciprocal", precision, shape, k_reciprocal_work, bars, sizes, **more)


def _channel_attention(length: int, *bars: Bar) -> Row:
    sizes = {"full": (32, 2048, length), "small": (2, 24, 10)}
    name, shape = f"channel_attention-{length}", "{} x {:,} x {}, forward and backward"
    return Row(name, "channel_attention", "bfloat16", shape, channel_attention_work, bars, sizes)


def _attended_averages(length: int, *bars: Bar) -> Row:
    sizes = {"full": (72, 2048, length), "small": (2, 24, 12)}
    name, shape = f"channel_attention-averages-{length}", "{} x {:,} x {} averaged to 3, forward and backward"
    return Row(name, "attended_averages", "bfloat16", shape, attended_averages_work, bars, sizes)


FLOAT32_ERROR = check("error_ratio", 2, "x a float32 GEMM's error")

ROWS = (
    _dmli_matrix(2048, "high", ratio(GEMM, 1.15), megabytes(256)),
    _dmli_matrix(2048, "medium", ratio(GEMM, 1.25)),
    _dmli_matrix(2048, "highest", ratio(GEMM, 0.7), FLOAT32_ERROR),
    _dmli_matrix(128, "high", ratio(GEMM, 2), speed(PUBLISHED_NUMPY, 100)),
    Row(
        "knn", "knn", "high", "{:,}, k = {}, d = {}", knn_work, (ratio(GEMM, 1.2, 0.5, HALF_GEMM),),
        {"full": (19281, 21, 2048), "small": (30, 5, 16)},
    ),
    _k_reciprocal("market-high", "high", (3368, 15913, 2048, 0), milliseconds(5)),
    _k_reciprocal("market-highest", "highest", (3368, 15913, 2048, 0), milliseconds(14)),
    _k_reciprocal("msmt17", "high", (11659, 82161, 2048, 100), milliseconds(150), megabytes(6000)),
    Row(
        "rank_metrics-market", "rank_metrics", "float32", "{:,} x {:,}", rank_metrics_work, (milliseconds(0.3),),
        {"full": (3368, 15913), "small": (6, 40)},
    ),
    Row(
        "rank_metrics-msmt17", "rank_metrics", "float32", "{:,} x {:,}", rank_metrics_work, (milliseconds(3),),
        {"full": (11659, 82161), "small": (6, 40)},
    ),
    Row(
        "batch_hard-64", "batch_hard_training", "float32", "{} x {}, forward and backward", batch_hard_training_work,
        (launches(4), speed(METRIC_LEARNING, 5)), {"full": (64, 2048), "small": (8, 16)},
    ),
    Row(
        "batch_hard-65536", "batch_hard", "high", "{:,} x {}, forward", batch_hard_work,
        (ratio(GEMM, 1.3), megabytes(537)),  # once the features: O(N d)
        {"full": (65536, 2048), "small": (16, 16)},
    ),
    Row(
        "dmli-128", "dmli", "float32", "{} pairs, {} x {}, forward and backward", dmli_work,
        (launches(2), speed(PUBLISHED_TORCH, 30)), {"full": (128, 8, 128), "small": (4, 8, 16)},
    ),
    _channel_attention(288, ratio(BMM, 0.5), megabytes(268)),  # less than one C x C matrix an image, in bfloat16
    _channel_attention(192, ratio(BMM, 0.5), megabytes(268)),
    _attended_averages(288, ratio(BMM, 0.3), megabytes(268)),
    _attended_averages(192, ratio(BMM, 0.3), megabytes(268)),
    _k_reciprocal(
        "million", "medium", (3368, 1_000_000, 2048, 100), milliseconds(15_000), megabytes(20_000), time_limit=60
    ),
)  # fmt: skip


def select(words: str | None = None, size: str = "full") -> list[Row]:
    """Rows that exist at this size and whose name is or contains one of the comma-separated words; None: all."""
    rows = [row for row in ROWS if size in row.sizes]
    if words is None:
        return rows
    wanted = [word.strip() for word in words.split(",") if word.strip()]
    unknown = [word for word in wanted if not any(word in row.name for row in rows)]
    if unknown or not wanted:
        names = ", ".join(row.name for row in rows)
        raise ValueError(f"rows should be parts of these names: {names}; got {', '.join(unknown) or 'nothing'}")
    names = {row.name for row in rows}
    return [row for row in rows if any(word == row.name if word in names else word in row.name for word in wanted)]


# ---------------------------------------------------------------------------------------------- limits and verdicts


def amount(value: float) -> str:
    """Three digits and a prefix."""
    scale, prefix = next((pair for pair in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= pair[0]), (1e3, "k"))
    return f"{value / scale:,.4g} {prefix}"


def limit(row: Row, size: str, ceilings: dict[str, float] | None) -> dict[str, Any] | None:
    """The time that the least work takes at this machine's measured ceilings: its longest part, and which that is."""
    if not ceilings:
        return None
    work = row.work(*row.sizes[size])
    rate, products = RATES[row.precision]
    parts = []
    if work.flops:
        unit = rate.removesuffix("_tflops")
        how = f"{amount(work.flops)}FLOP of {unit}{f' in {products} products' if products > 1 else ''}"
        parts.append((work.flops * products / ceilings[rate] / 1e9, f"{how} at {ceilings[rate]:,.3g} TFLOP/s"))
    speed_of_memory = ceilings["copy_tb_s"]
    parts.append((work.bytes / speed_of_memory / 1e9, f"{amount(work.bytes)}B at {speed_of_memory:,.3g} TB/s"))
    if ceilings.get("launch_us"):
        launch = ceilings["launch_us"]
        parts.append((work.launches * launch / 1e3, f"{work.launches} launches of {launch:,.3g} us"))
    ms, how = max(parts)
    return {"ms": ms, "how": how}


def judged(row: Row, size: str, figures: Figures, ceilings: dict[str, float] | None) -> Figures:
    """The figures with the limit, how far from it they are, and the bars' verdicts.

    "met" is True where every bar is met and the result was right, None where something was not measured.
    """
    least = limit(row, size, ceilings)
    ours = figures.get("ours_ms")
    bars = [bar.judge(figures) for bar in row.bars]
    verdicts = [bar["met"] for bar in bars] + [figures.get("checks", {}).get("ok")]
    return {
        **figures,
        "shape": row.shape_text(size),
        "precision": row.precision,
        "limit": least,
        "ratio": ours / least["ms"] if ours and least else None,
        "bars": bars,
        "met": False if False in verdicts else None if None in verdicts else True,
    }
