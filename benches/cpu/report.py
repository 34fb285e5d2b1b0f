"""Tables of the processor's figures: for the terminal, and the one in benches/README.md.

python -m benches.cpu.report    # writes the README's tables from the files in benches/results
"""

from typing import Any

from benches import report
from benches.cpu import committed, rows
from benches.report import number, verdict

BEGIN, END = "<!-- processor: begin -->", "<!-- processor: end -->"

Results = dict[str, Any]


def can(ceilings: dict[str, float]) -> str:
    """The ceilings in words."""
    libraries = {name: value for name, value in ceilings.items() if not name.endswith(("_gflops", "_gb_s"))}
    products = ", ".join(f"{name} {value:,.0f}" for name, value in libraries.items())
    return (
        f"a copy moves {ceilings['copy_gb_s']:.3g} GB/s; products of float32 matrices run at {products} GFLOP/s,"
        f" of bfloat16 ones at {ceilings['bf16_gflops']:,.0f}"
    )


# ---------------------------------------------------------------------------------------------- terminal


def line(figures: Results) -> str:
    """A row's progress."""
    over = ", ".join(f"{ratio:.3g} x {name}" for name, ratio in peers(figures).items())
    return f"{figures['name']}: {number(figures['ours_ms'])} ms, {over} ({figures['seconds']:.0f} s)"


def peers(figures: Results) -> dict[str, float]:
    """Ours over each peer; of the matrix products over the fastest."""
    return {name: ratio for name, ratio in figures["over"].items() if not name.startswith("GEMM, ")}


def summary(results: Results) -> str:
    """Every row: ours, its limit, memory and bars; below it each peer and ours over it."""
    lines = [["", "ms", "p10", "p90", "calls", "ours over it", ""]]
    for row in results["rows"]:
        right = "right" if row["checks"]["ok"] else "WRONG RESULT"
        memory = row.get("workspace_bytes")
        beyond = "" if memory is None else f"; {number(memory / 1e6)} MB beyond inputs and result"
        lines.append([f"{row['name']}: {row['shape']}", *times(row, "ours_"), "", f"{right}{beyond}"])
        lines.append(["  limit", number(row["limit"]["ms"]), "", "", "", f"{row['ratio']:.3g}", row["limit"]["how"]])
        for name, peer in row["peers"].items():
            ratio = f"{row['over'][name]:.3g}" if name in row["over"] else ""
            lines.append([f"  {name}", *times(peer), ratio, peer.get("error", peer.get("note", ""))])
        for bar in row["bars"]:
            mark = {True: "met", False: "MISSED", None: "not measured"}[bar["met"]]
            lines.append([f"  bar: {bar['bar']}", "", "", "", "", number(bar["value"]), mark])
    tables = [lines, *small_tables(results)] if results["rows"] else small_tables(results)
    return "\n\n".join(map(aligned, tables))


def times(figures: Results, prefix: str = "") -> list[str]:
    values = [figures.get(f"{prefix}{field}") for field in ("ms", "low", "high")]
    return [*("" if value is None else number(value) for value in values), str(figures.get(f"{prefix}calls", ""))]


def small_tables(results: Results) -> list[list[list[str]]]:
    """Threads and SIMD levels, each a list of lines; none where nothing was measured."""
    tables = []
    for key, head in (("threads", "ms on threads:"), ("simd", "ms by SIMD level:")):
        if results.get(key):
            names = list(next(iter(results[key].values()))["ms"])
            lines = [[head, *names, "answers"]]
            for name, row in results[key].items():
                cells = [number(row["ms"].get(column)) for column in names]
                lines.append([f"{name}: {row['shape']}", *cells, "the same" if row["same"] else "DIFFERENT"])
            tables.append(lines)
    return tables


def aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join(text.rstrip() for text in texts)


# ---------------------------------------------------------------------------------------------- README


def markdown(results: Results | None) -> str:
    """The tables, and what they were measured on; every row, "not measured" where there is no figure."""
    found = {row["name"]: row for row in (results or {}).get("rows", [])}
    head = ["operator", "size", "ms", "limit, ms", "ms / limit", "MB", "bars", "ours over each peer"]
    lines = [head, ["---"] * len(head), *(cells(row, found.get(row.name)) for row in rows.every())]
    tables = [lines, *([table[0], ["---"] * len(table[0]), *table[1:]] for table in small_tables(results or {}))]
    texts = ["\n".join(f"| {' | '.join(line)} |" for line in table) for table in tables]
    return "\n\n".join([*texts, origin(results)]) + "\n"


def cells(row: rows.Row, figures: Results | None) -> list[str]:
    name = f"`{row.op}`" + (" at medium" if row.precision == "medium" else "")
    if figures is None:
        return [name, row.shape_text(), "not measured", "", "", "", "<br>".join(bar.text() for bar in row.bars), ""]
    memory = figures.get("workspace_bytes")
    rivals = [f"{name}: {ratio:.3g}" for name, ratio in figures["over"].items()]
    rivals += [f"{name}: {peer['error'][:60]}" for name, peer in figures["peers"].items() if "error" in peer]
    ours = f"{number(figures['ours_ms'])} ({number(figures['ours_low'])} to {number(figures['ours_high'])})"
    return [
        name,
        row.shape_text(),
        ours if figures["checks"]["ok"] else f"{ours}, **wrong result**",
        f"{number(figures['limit']['ms'])}: {figures['limit']['how']}",
        f"{figures['ratio']:.3g}",
        "" if memory is None else number(memory / 1e6),
        "<br>".join(f"{bar['bar']}{verdict(bar)}" for bar in figures["bars"]),
        "<br>".join(rivals),
    ]


def origin(results: Results | None) -> str:
    if not results:
        return "No processor has been measured yet."
    about = results["machine"]
    commits = ", ".join(sorted({str(row["commit"]) for row in results["rows"]}))
    versions = ", ".join(
        f"{name} {about[key]}"
        for name, key in {"torch": "torch", "NumPy": "numpy", "faiss": "faiss"}.items()
        if about.get(key)
    )
    return (
        f"{about['CPU']}, {about['cores']} cores, 2 threads, {versions}, {results['when'][:10]}, commit {commits}."
        f" Measured there: {can(results['ceilings'])}."
    )


def growth(curves: Results | None, machine: str) -> str:
    """The exponents of the curves, and their picture."""
    if not curves:
        return ""
    lines = [f"![Time and memory over the number of images](results/{machine}-growth.png)\n"]
    for name, curve in curves["curves"].items():
        powers = [
            f"{what} as N^{curve[fit]:.2f}"
            for what, fit in (("time grows", "ms_exponent"), ("memory", "memory_exponent"))
            if curve[fit] is not None
        ]
        counts = ", ".join(f"{point['images']:,}: {number(point['ms'])} ms" for point in curve["points"])
        lines.append(f"- `{name.partition('-')[0]}`, N images, a sixth of them queries: {', '.join(powers)}. {counts}.")
    return "\n".join(lines) + "\n"


def all_machines() -> str:
    """The tables of every machine that has figures."""
    texts = [
        f"### {machine}\n\n{markdown(committed.load(machine))}\n{growth(committed.load(f'{machine}-growth'), machine)}"
        for machine in committed.machines()
    ]
    return "\n".join(texts) or markdown(None)


def write_readme() -> None:
    report.replace(report.README, BEGIN, END, all_machines())


if __name__ == "__main__":
    write_readme()
