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

from benches import process, rows

FOLDER = Path(__file__).resolve().parent
README = FOLDER / "README.md"
SHOWN = FOLDER / "results" / "nvidia-h200.json"
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
    return f"{table}\n\n{origin(results)}\n"


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
    """What the GPU's counters say of the row's slowest kernel."""
    measured = [kernel for kernel in results.get("kernels", []) if kernel["row"] == row.name]
    if not measured or not figures:
        return ""
    slowest = max(measured, key=lambda kernel: kernel["ns"] or 0.0)
    return f"{slowest['bound']} in `{slowest['kernel']}`"


def verdict(bar: Results) -> str:
    return "" if bar["value"] is None else f": {number(bar['value'])} {MARKS[bar['met']]}"


def peer(name: str, timing: Results) -> str:
    note = f" ({timing['note']})" if "note" in timing else ""
    return f"{name}{note}: {number(timing['ms']) if 'ms' in timing else timing['error'][:60]}"


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
    order = [row.name for row in rows.ROWS]
    kept = [row for row in old["rows"] if row["name"] not in names]
    return {
        **old,
        **new,
        "machine": new["machine"] if "error" not in new["machine"] else old["machine"],
        "ceilings": new["ceilings"] or old["ceilings"],
        "parts": {**old["parts"], **new["parts"]},
        "rows": sorted([*kept, *new["rows"]], key=lambda row: order.index(row["name"])),
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
    write_readme(load(SHOWN))


def add(paths: Iterable[Path], folder: Path = SHOWN.parent) -> None:
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
