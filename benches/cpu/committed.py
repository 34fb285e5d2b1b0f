"""The figures in results/, one file a machine: what this run is held against, and where it goes.

The reference is the file as the last commit has it, else as it lies there. A ratio of ours to a peer that is more than
WORSE times the reference's has worsened. (That to the limit is not held: what the machine can do is measured at another
moment than the row.)
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from benches import process

FOLDER = process.ROOT / "benches" / "results"
ASIDE = process.ROOT / "runs" / "bench"  # for figures that are not to be kept: of a quick run, or worse ones
WORSE = 1.25

Results = dict[str, Any]


def reference(machine: str, folder: Path = FOLDER) -> Results | None:
    """The machine's committed figures; None where there are none."""
    path = folder / f"{machine}.json"
    if folder.is_relative_to(process.ROOT):
        command = ["git", "show", f"HEAD:{path.relative_to(process.ROOT).as_posix()}"]
        try:
            shown = subprocess.run(command, cwd=process.ROOT, capture_output=True, text=True)
        except OSError:  # no git
            shown = None
        if shown is not None and shown.returncode == 0:
            return json.loads(shown.stdout)
    return load(machine, folder)


def machines(folder: Path = FOLDER) -> list[str]:
    """Those that have figures."""
    return sorted(path.stem for path in folder.glob("*-cores-*.json") if not path.stem.endswith("-growth"))


def load(machine: str, folder: Path = FOLDER) -> Results | None:
    """The figures as they lie in results/."""
    path = folder / f"{machine}.json"
    return json.loads(path.read_text()) if path.exists() else None


def row(results: Results | None, name: str) -> Results | None:
    return next((row for row in (results or {}).get("rows", []) if row["name"] == name), None)


def worsened(before: Results | None, now: Results) -> dict[str, float]:
    """Peers against which ours got slower by more than a quarter, and by what factor.

    Of the matrix products the fastest counts, which is itself among the peers.
    """
    if before is None or before.get("shape") != now.get("shape"):
        return {}
    factors = {
        name: ratio / before["over"][name]
        for name, ratio in now.get("over", {}).items()
        if name in before.get("over", {}) and not name.startswith("GEMM, ")
    }
    return {name: factor for name, factor in factors.items() if factor > WORSE}


def sentence(name: str, factors: dict[str, float], before: Results, now: Results) -> str:
    """Which row, and by how much."""
    parts = [
        f"{peer} {now['over'][peer]:.3g}, committed {before['over'][peer]:.3g}, worse by {100 * (factor - 1):.0f} %"
        for peer, factor in factors.items()
    ]
    return f"{name}, ours over {'; over '.join(parts)}"


def merged(old: Results | None, new: Results, order: list[str]) -> Results:
    """The new figures with the rows and tables that only the old ones have; each row carries its commit."""
    old = old or {"rows": []}
    fresh = [{**row, "commit": row.get("commit", new["commit"])} for row in new["rows"]]
    names = {row["name"] for row in fresh} | {row["name"] for row in old["rows"] if row["name"] not in order}
    found = [*fresh, *(row for row in old["rows"] if row["name"] not in names)]
    tables = {table: {**old.get(table, {}), **new.get(table, {})} for table in ("threads", "simd")}
    return {**old, **new, **tables, "rows": sorted(found, key=lambda row: order.index(row["name"]))}


def write(results: Results, machine: str, order: list[str], folder: Path = FOLDER) -> Path:
    """Adds the figures to the machine's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{machine}.json"
    process.write(path, json.dumps(merged(load(machine, folder), results, order), indent=1) + "\n")
    return path
