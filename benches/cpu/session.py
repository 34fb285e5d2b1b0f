"""A whole run of make bench: what was asked for, what was committed, and the figures so far."""

import datetime
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import reidops
from benches import process
from benches.cpu import alone, committed, machine, race, report, rows
from benches.cpu.contestant import OURS
from benches.cpu.rows import Row

OVERSUBSCRIBED = 8  # threads, on fewer cores
DIFFERENT = 1e-4  # of the largest entry: beyond it answers of two SIMD levels differ

Figures = dict[str, Any]


class Session:
    """`say` prints a line of progress."""

    def __init__(
        self, say: Callable[[str], None], quick: bool = False, update: bool = False, folder: Path = committed.FOLDER
    ):
        self.say, self.quick, self.update, self.folder = say, quick, update, folder
        self.machine = machine.slug()
        self.reference = committed.reference(self.machine, self.folder)
        self.rows: dict[str, Figures] = {}
        self.worse: dict[str, str] = {}
        self.wrong: list[str] = []
        self.threads: dict[str, Figures] = {}
        self.simd: dict[str, Figures] = {}
        self.measured: dict[str, float] = {}

    @property
    def ceilings(self) -> dict[str, float]:
        """What the machine can do, measured when it is first asked for."""
        if not self.measured:
            torch.set_num_threads(machine.THREADS)
            self.measured = machine.ceilings()
            self.say(f"{self.machine}: {report.can(self.measured)}")
        return self.measured

    # ------------------------------------------------------------------------------------------ rows

    def bench(self, row: Row, benchmark: Any) -> str | None:
        """Measures a row, again if a ratio has worsened; what is to be said against it, or None."""
        before = committed.row(self.reference, row.name)
        figures = self.measure(row, race.pedantic(benchmark))
        worse = committed.worsened(before, figures)
        if worse:
            self.say(f"  measured again: {committed.sentence(row.name, worse, before, figures)}")
            figures = self.measure(row, race.in_turn)
            worse = {name: by for name, by in committed.worsened(before, figures).items() if name in worse}
        self.rows[row.name] = figures
        self.say(report.line(figures))
        if not figures["checks"]["ok"]:
            self.wrong.append(row.name)
            return f"{row.name}: wrong result: {figures['checks']}"
        if worse:
            self.worse[row.name] = committed.sentence(row.name, worse, before, figures)
        return self.worse.get(row.name)

    def measure(self, row: Row, rounds: race.Rounds) -> Figures:
        ceilings = self.ceilings
        figures = race.measure(row, "full", 0.3 if self.quick else 2.0, rounds, self.quick)
        if "workspace_bytes" not in figures and not self.quick:
            alone_figures = alone.start(row.name)
            if "error" in alone_figures:
                raise RuntimeError(f"{row.name}, memory: {alone_figures['error']}")
            figures["workspace_bytes"] = alone_figures.get("workspace_bytes")
        return rows.judged(row, "full", figures, ceilings)

    # ------------------------------------------------------------------------------------------ threads, SIMD levels

    def count_threads(self, row: Row) -> str | None:
        """The row's operator on 1, 2 and too many threads."""
        found = {n: self.part(row, "--threads", str(n)) for n in (1, machine.THREADS, OVERSUBSCRIBED)}
        same = len({figures["digest"] for figures in found.values()}) == 1
        times = {str(n): figures["ms"] for n, figures in found.items()}
        self.threads[row.name] = {"op": row.op, "shape": row.shape_text("part"), "ms": times, "same": same}
        self.say(f"{row.name} on {', '.join(f'{n} threads {report.number(ms)} ms' for n, ms in times.items())}")
        if not same:
            self.wrong.append(row.name)
        return None if same else f"{row.name}: answers depend on the number of threads"

    def force_levels(self, row: Row, folder: Path) -> str | None:
        """The row's operator with every SIMD level this processor has."""
        levels, found = reidops.build_info()["simd_levels"], {}
        for level in levels:
            found[level] = self.part(row, "--save", str(folder / level), environment={"REIDOPS_SIMD": level})
        best, *others = (torch.load(folder / level) for level in reversed(levels))
        different = max((share_differing(other, best) for other in others), default=0.0)
        times = {level: figures["ms"] for level, figures in found.items()}
        same = different < 0.01  # of a re-ranking, rounding decides a tie here and there
        self.simd[row.name] = {
            "op": row.op, "shape": row.shape_text("part"), "ms": times, "differing": different, "same": same,
        }  # fmt: skip
        self.say(f"{row.name} with {', '.join(f'{level} {report.number(ms)} ms' for level, ms in times.items())}")
        if not same:
            self.wrong.append(row.name)
        return None if same else f"{row.name}: answers depend on the SIMD level, {different:.2%} of the entries"

    def part(self, row: Row, *arguments: str, environment: dict[str, str] | None = None) -> Figures:
        seconds = "0.2" if self.quick else "1"
        found = alone.start(
            row.name, "--size", "part", "--seconds", seconds, "--contestant", OURS, *arguments, environment=environment
        )
        if "error" in found:
            raise RuntimeError(f"{row.name} {' '.join(arguments)}: {found['error']}")
        return found

    # ------------------------------------------------------------------------------------------ results

    def results(self) -> Figures:
        return {
            "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "commit": process.commit(),
            "machine": {"name": self.machine, **machine.facts()},
            "environment": {name: os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")},
            "ceilings": self.ceilings,
            "rows": list(self.rows.values()),
            "threads": self.threads,
            "simd": self.simd,
        }

    def write(self) -> Path:
        """Into results/, but for those of a quick run, of wrong results, and worse ones that nobody has accepted."""
        kept = not self.wrong and (self.update or not (self.quick or self.worse))
        folder = self.folder if kept else committed.ASIDE
        order = [row.name for row in rows.every()]
        path = committed.write(self.results(), self.machine, order, folder)
        if kept:
            report.write_readme()
        return path


def share_differing(found: list[torch.Tensor], best: list[torch.Tensor]) -> float:
    """The share of entries that differ by more than rounding; the tensor with the most counts."""
    shares = []
    for some, other in zip(found, best, strict=True):
        some, other = some.double(), other.double()
        finite = other.isfinite()
        scale = other[finite].abs().max() if finite.any() else 1.0
        differs = ((some - other).abs() > DIFFERENT * scale) | (some.isfinite() != finite)
        shares.append(differs.double().mean().item())
    return max(shares)
