"""Tables of results: a short one for the terminal, and the one in benches/README.md.

    python -m benches.report                                   # writes the README's table from benches/results
    python -m benches.report --add runs/gpu-check/results.json # takes over its rows first

Rows that are added take the place of those of the same name; each carries its commit.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benches import kernels, process, rows

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"
RESULTS = FOLDER / "results"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
MARKS = {True: "met", False: "**missed**", None: ""}
SIGNS = {True: "", False: " !", None: " ?"}

Results = dict[str, Any]


# ---------------------------------------------------------------------------------------------- terminal


def part_line(name: str, result: Results) -> str:
    why = result.get("why", "").strip().partition("\n")[0]
    counts = ", ".join(f"{count} {word}" for word, count in result.get("counts", {}).items())
    facts = "; ".join(filter(None, [counts, why]))
    return f"{name}: {result['status']} after {result['seconds']} s{': ' if facts else ''}{facts[:200]}"


def summary(results: Results) -> str:
    """The parts, then a line for each row."""
    lines = [part_line(name, result) for name, result in results["parts"].items()]
    table = [["row", "ms", "limit", "ratio", "bars"]] if results["rows"] else []
    for row in results["rows"]:
        bars = "; ".join(f"{bar['bar']}: {number(bar['value'])}{SIGNS[bar['met']]}" for bar in row["bars"])
        limit = row.get("limit") or {}
        remark = row["error"][:80] if "error" in row else bars
        if row.get("checks", {}).get("ok") is False:
            remark = f"WRONG RESULT; {remark}"
        table.append(
            [row["name"], number(row.get("ours_ms")), number(limit.get("ms")), number(row.get("ratio")), remark]
        )
    widths = [max(len(line[column]) for line in table) for column in range(5)] if table else []
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---------------------------------------------------------------------------------------------- README


def markdown(results: Results | None) -> str:
    """The table of all rows, "not measured" where there is no figure, and what it was measured on."""
    found = {row["name"]: row for row in results["rows"]} if results else {}
    head = ["operator", "size", "precision", "ms", "limit, ms", "ratio", "bound by", "bars", "peers, ms"]
    lines = [head, ["---"] * len(head)]
    for row in rows.ROWS:
        lines.append(cells(row, found.get(row.name, {}), results or {}))
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    parts = [table, origin(results), kernels_table(results or {}), mudeep_step(results or {})]
    return "\n\n".join(filter(None, parts)) + "\n"


def cells(row: rows.Row, figures: Results, results: Results) -> list[str]:
    limit = figures.get("limit") or {}
    bars = figures.get("bars") or [bar.judge({}) for bar in row.bars]
    ours = number(figures.get("ours_ms")) if figures.get("ours_ms") else "not measured"
    if figures.get("checks", {}).get("ok") is False:
        ours = f"{ours}, **wrong result**"
    return [
        f"`{row.op.removesuffix('_training')}`",
        row.shape_text(),
        row.precision,
        figures.get("error", ours) if not figures.get("ours_ms") else ours,
        f"{number(limit['ms'])}: {limit['how']}" if limit else least(row),
        number(figures["ratio"]) if figures.get("ratio") else "",
        bound(row, figures, results),
        "<br>".join(f"{bar['bar']}{verdict(bar)}" for bar in bars),
        "<br>".join(peer(name, timing) for name, timing in figures.get("peers", {}).items()),
    ]


def least(row: rows.Row) -> str:
    work = row.work(*row.sizes["full"])
    return ", ".join([f"{rows.amount(work.flops)}FLOP"] * bool(work.flops) + [f"{rows.amount(work.bytes)}B"])


def bound(row: rows.Row, figures: Results, results: Results) -> str:
    """What the GPU's counters say of our kernel that takes most of the row's time."""
    name = kernels.slowest(results.get("times", []), row.name) or ""
    measured = [
        kernel
        for kernel in results.get("kernels", [])
        if kernel["row"] == row.name and kernel["kernel"].startswith(name)
    ]
    if not measured or not figures:
        return ""
    longest = max(measured, key=lambda kernel: kernel["ns"] or 0.0)
    return f"{longest['bound']} in `{longest['kernel']}`"


def verdict(bar: Results) -> str:
    return "" if bar["value"] is None else f": {number(bar['value'])} {MARKS[bar['met']]}"


def peer(name: str, timing: Results) -> str:
    note = f" ({timing['note']})" if "note" in timing else ""
    return f"{name}{note}: {number(timing['ms']) if 'ms' in timing else timing['error'][:60]}"


def kernels_table(results: Results) -> str:
    """Where the rows' time on the GPU goes, the products' and torch's kernels each taken together."""
    lines = []
    for one in results.get("times", []):
        if "error" in one or not one["kernels"]:
            continue
        total: dict[str, float] = {}
        for kernel in one["kernels"]:
            name = kernel_name(kernel)
            total[name] = total.get(name, 0.0) + kernel["ms"]
        most = sorted(total.items(), key=lambda item: -item[1])[:5]
        shares = ", ".join(f"{name} {number(ms)}" for name, ms in most if ms >= 0.01 * one["busy_ms"])
        lines.append(f"| {one['name']} | {number(one['busy_ms'])} of {number(one['span_ms'])} | {shares} |")
    if not lines:
        return ""
    return "\n".join(["| row | busy, ms | kernels, ms in all |", "| --- | --- | --- |", *lines])


def kernel_name(kernel: Results) -> str:
    if kernel["ours"]:
        return f"`{kernel['kernel'].partition('<')[0]}`"
    if kernel["kernel"].startswith("Mem"):
        return "copies and fills"
    return "products" if re.search(r"gemm|nvjet|splitK", kernel["kernel"]) else "torch"


def mudeep_step(results: Results) -> str:
    """The training step's figures, in a few sentences."""
    figures = results.get("parts", {}).get("step", {}).get("figures", {})
    taken = figures.get("step", {})
    if not taken or any("seconds" not in one for one in taken.values()):
        return ""
    theirs, ours = taken["published"], taken["reidops"]
    attention, triplet = (figures["attention"][part] for part in ("attention", "triplet"))
    count, _, height, width = figures["images"]
    agreement = figures["agreement"]
    return (
        f"MuDeep_v2's training step, {count} images of {height} x {width}, in {figures['published']} and ours:"
        f" {theirs['seconds']:.3f} and {ours['seconds']:.3f} s, peak of memory {theirs['peak_bytes'] / 1e9:.1f}"
        f" and {ours['peak_bytes'] / 1e9:.1f} GB; three scales' attention {1e3 * attention['published']:.1f} and"
        f" {1e3 * attention['reidops']:.1f} ms, triplet losses {1e3 * triplet['published']:.1f} and"
        f" {1e3 * triplet['reidops']:.1f} ms. Gradients agree to {agreement['float32']['gradients']:.1g} in float32, to"
        f" {agreement['float64']['gradients']:.1g} in float64."
    )


def origin(results: Results | None) -> str:
    if not results:
        return "No GPU has run these yet."
    machine, ceilings = results["machine"], results["ceilings"]
    gpu = "; ".join(machine.get("GPUs", [])) or "no GPU"
    can = {
        "a copy moves {:.3g} TB/s": "copy_tb_s",
        "a matrix product on random data runs at {:.0f} TFLOP/s in bfloat16": "bf16_tflops",
        "{:.0f} in tf32": "tf32_tflops",
        "{:.0f} in float32": "fp32_tflops",
        "a launch takes {:.2g} us": "launch_us",
    }
    measured = ", ".join(text.format(ceilings[name]) for text, name in can.items() if name in ceilings)
    commits = sorted({str(row.get("commit")) for row in results["rows"]})
    return (
        f"{gpu}, driver {machine.get('GPU driver')}, torch {machine.get('torch')}, CUDA {machine.get('torch CUDA')},"
        f" {results['when'][:10]}, commit {', '.join(commits)}. Measured there: {measured}."
    )


def merged(old: Results | None, new: Results) -> Results:
    """The new results with what only the old ones have: rows, their kernels, the tests' result."""
    new = {**new, "rows": [{**row, "commit": row.get("commit", new["commit"])} for row in new["rows"]]}
    if not old:
        return new
    names = {row["name"] for row in new["rows"]}
    profiled = {kernel["row"] for kernel in new["kernels"]}
    timed = {one["name"] for one in new.get("times", [])}
    order = [row.name for row in rows.ROWS]
    kept = [row for row in old["rows"] if row["name"] not in names]
    return {
        **old,
        **new,
        "machine": new["machine"] if "error" not in new["machine"] else old["machine"],
        "ceilings": new["ceilings"] or old["ceilings"],
        "parts": {**old["parts"], **new["parts"]},
        "rows": sorted([*kept, *new["rows"]], key=lambda row: order.index(row["name"])),
        "times": [one for one in old.get("times", []) if one["name"] not in timed] + new.get("times", []),
        "kernels": [kernel for kernel in old["kernels"] if kernel["row"] not in profiled] + new["kernels"],
    }


def write_readme(results: Results | None, path: Path = README) -> None:
    replace(path, BEGIN, END, markdown(results))


def replace(path: Path, begin: str, end: str, table: str) -> None:
    """Puts the table between the two lines of the file."""
    text = path.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{path} should hold the lines {begin} and {end}")
    before, after = text.split(begin)[0], text.split(end)[1]
    process.write(path, f"{before}{begin}\n{table}{end}{after}")


def load(path: Path) -> Results | None:
    return json.loads(path.read_text()) if path.exists() else None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.report", description=__doc__.splitlines()[0])
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="results.json of runs of gpu_check")
    args = parser.parse_args(argv)
    add(args.add)
    write_readme(newest())


def newest(folder: Path = RESULTS) -> Results | None:
    """The results of the GPU that was measured last, which are those the README shows."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("nvidia-*.json"))]
    return max(found, key=lambda results: results["when"], default=None)


def add(paths: Iterable[Path], folder: Path = RESULTS) -> None:
    """Takes results over into the file of their GPU, named after it."""
    for path in paths:
        new = json.loads(path.read_text())
        if new["size"] != "full" or new["device"] != "cuda":
            raise SystemExit(
                f"{path} holds figures of {new['size']} sizes on {new['device']}, wanted full ones of a GPU"
            )
        gpu = (new["machine"].get("GPUs") or ["unknown gpu"])[0].partition(",")[0]
        name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
        kept = folder / f"{name}.json"
        process.write(kept, json.dumps(merged(load(kept), new), indent=1) + "\n")


if __name__ == "__main__":
    main()
