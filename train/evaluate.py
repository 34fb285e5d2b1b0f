"""Evaluation: query and gallery features to the table of CMC and mAP, one row for each test distance.

From a file of features, of any network:

    python -m train.evaluate --features features.npz
"""

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import reidops
from train.data.paths import find_input, prepare_output
from train.features import Features, load_features
from train.files import write_json
from train.log import describe_machine

# Rows of the papers' tables: what the distance is called in JSON and on paper. "global_local" stands in no table,
# but the published flags can ask for it (--test-distance global_local --unaligned).
DISTANCES = {
    "global": "Global",
    "local": "Local",
    "dmli": "DMLI",
    "global_local": "Global+Local",
    "global_dmli": "Global+DMLI",
    "cosine": "Cosine",
}
PROTOCOLS = ("market1501", "cuhk03", "mudeep")
DRAWS = "cuhk03: the mean over 100 draws of one gallery image an identity"
TABLE = ("global", "local", "dmli", "global_dmli")
RANKS = (1, 5, 10)


class Evaluation(NamedTuple):
    """One row of the table: fractions from 0 to 1, and the whole CMC curve for the picture."""

    distance: str
    reranking: bool
    cmc: Tensor
    mean_ap: float
    mean_inp: float
    seconds: float
    protocol: str = "market1501"

    def rank(self, k: int) -> float:
        """Fraction of queries with a match among the first k; a gallery smaller than k counts whole."""
        return self.cmc[min(k, len(self.cmc)) - 1].item()

    def row(self) -> dict[str, str | bool | float]:
        """The row as it stands in results.json."""
        ranks = {f"rank{k}": self.rank(k) for k in RANKS}
        return {
            "distance": self.distance,
            "reranking": self.reranking,
            "protocol": self.protocol,
            **ranks,
            "mAP": self.mean_ap,
            "mINP": self.mean_inp,
        }


class Distances:
    """Query-gallery distances of a set of features by name; the two big matrices are computed once and kept."""

    def __init__(self, features: Features):
        self.features, self._kept = features, {}

    def matrix(self, name: str) -> Tensor:
        """(M, N): squared Euclidean for the global features, sums over stripes for the local ones, or both added.

        "cosine" is 1 - cosine of global features of unit length: half their squared Euclidean distance.
        """
        if name == "cosine":
            return self.matrix("global") / 2
        if name in ("global_local", "global_dmli"):
            return self.matrix("global") + self.matrix(name.removeprefix("global_"))
        if name not in self._kept:
            self._kept[name] = self._between("query", "gallery", name)
        return self._kept[name]

    def reranked(self, name: str, k1: int, k2: int, lambda_value: float) -> Tensor:
        """(M, N): the same after k-reciprocal re-ranking of that distance."""
        f = self.features
        options = {"k1": k1, "k2": k2, "lambda_value": lambda_value}
        if name in ("local", "global_local"):  # stripes row by row have no streamed form: whole matrices
            inner = [self._between(side, side, name) for side in ("query", "gallery")]
            return reidops.k_reciprocal_from_distance(self.matrix(name), *inner, **options)
        pair = (None, None) if name == "dmli" else (f.query, f.gallery)
        local = (None, None) if name in ("global", "cosine") else (f.query_local, f.gallery_local)
        return reidops.k_reciprocal(*pair, query_local=local[0], gallery_local=local[1], **options)

    def _between(self, first: str, second: str, name: str) -> Tensor:
        distance = 0
        if name.startswith("global"):
            x, y = getattr(self.features, first), getattr(self.features, second)
            distance = distance + reidops.euclidean_distance(x, y, squared=True)
        if name != "global":
            x, y = getattr(self.features, f"{first}_local"), getattr(self.features, f"{second}_local")
            distance = distance + reidops.dmli_matrix(x, y, aligned=name.endswith("dmli"))
        return distance


def chosen_distances(choice: str, unaligned: bool = False) -> tuple[str, ...]:
    """The rows that --test-distance asks for, in the published meaning of its words.

    "local" is DMLI, and the row-by-row distance with `unaligned`; "global_local" adds the global distance; "dmli" and
    "global_dmli" say the same outright; "all" is the papers' table.

    Example:
        >>> chosen_distances("global_local")
        ('global_dmli',)
        >>> chosen_distances("all")
        ('global', 'local', 'dmli', 'global_dmli')
    """
    if choice == "all":
        return TABLE
    if choice in ("local", "global_local") and not unaligned:
        return ({"local": "dmli", "global_local": "global_dmli"}[choice],)
    return (choice,)


def evaluate(
    features: Features,
    distances: Sequence[str] = TABLE,
    *,
    reranking: bool = True,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    protocols: Sequence[str] = ("market1501",),
) -> list[Evaluation]:
    """Rank the gallery for every query by every distance, and score it by every protocol.

    Args:
        features: as published, with global features of unit length (`features.normalized()`).
        distances: names from DISTANCES.
        reranking: score every distance after k-reciprocal re-ranking too.
        k1, k2, lambda_value: of the re-ranking.
        protocols: some of PROTOCOLS (see `reidops.rank_metrics`): "market1501"; "mudeep" as MuDeep_v2's program scores;
            "cuhk03", the mean over 100 draws of one gallery image an identity. A draw leaves a query one match, so that
            mAP is then the mean of 1 / rank, as in the published AlignedReID program, and mINP the same.

    Returns:
        For every distance its plain rows, one a protocol, then its re-ranked rows.

    Raises:
        ValueError: a distance needs local features that are not there, re-ranking needs more images, or no query has
            a match in the gallery.
    """
    images = len(features.query) + len(features.gallery)
    if reranking and images <= k1:
        raise ValueError(
            f"re-ranking with k1={k1} needs at least {k1 + 1} images, query and gallery together, and there are "
            f"{images}: use a smaller k1 or leave re-ranking out"
        )
    if features.query_local is None and set(distances) - {"global", "cosine"}:
        raise ValueError(f"distances {', '.join(distances)} need local features, and there are only global ones")
    table, evaluations = Distances(features), []
    bar = tqdm(total=len(distances) * (1 + reranking), desc="evaluation", unit="row", leave=False, disable=None)
    for name in distances:
        for again in (False, True) if reranking else (False,):
            start = time.perf_counter()
            matrix = table.reranked(name, k1, k2, lambda_value) if again else table.matrix(name)
            labels = features.query_ids, features.gallery_ids, features.query_cameras, features.gallery_cameras
            for protocol in protocols:
                metrics = reidops.rank_metrics(matrix, *labels, protocol=protocol)
                seconds = time.perf_counter() - start
                scores = (metrics.cmc, float(metrics.mean_ap), float(metrics.mean_inp), seconds)
                evaluations.append(Evaluation(name, again, *scores, protocol))
            bar.update()
    bar.close()
    return evaluations


def format_table(evaluations: Sequence[Evaluation]) -> str:
    """The table in percent, as the papers print it, with each row's seconds; a protocol but market1501 is said."""
    said = {evaluation.protocol for evaluation in evaluations} != {"market1501"}
    head = f"{'Distance':<14}{'Re-ranking':<14}" + (f"{'Protocol':<12}" if said else "")
    head += "".join(f"{title:>9}" for title in (*(f"Rank-{k}" for k in RANKS), "mAP", "mINP", "seconds"))
    lines = [head, "-" * len(head)]
    for evaluation in evaluations:
        scores = [*(evaluation.rank(k) for k in RANKS), evaluation.mean_ap, evaluation.mean_inp]
        name = f"{DISTANCES[evaluation.distance]:<14}{'k-reciprocal' if evaluation.reranking else '-':<14}"
        name += f"{evaluation.protocol:<12}" if said else ""
        lines.append(name + "".join(f"{100 * score:>9.1f}" for score in scores) + f"{evaluation.seconds:>9.2f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> dict:
    """Command line: the table of a file of features."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description="The table of a file of features.")
    parser.add_argument("--features", required=True, metavar="NPZ", help="see load_features for what it holds")
    parser.add_argument("--no-normalize", action="store_true", help="take the global features as they are")
    parser.add_argument(
        "--test-distance",
        "--test_distance",
        default="all",
        choices=[*DISTANCES, "all"],
        help="as in train.alignedreid; rows without their features are left out of 'all'",
    )
    parser.add_argument("--unaligned", action="store_true", help="local distance stripe by stripe, without DMLI")
    parser.add_argument("--protocol", default="market1501", choices=PROTOCOLS, help=f"how ranks are scored; {DRAWS}")
    parser.add_argument("--no-reranking", action="store_true", help="plain distances alone")
    parser.add_argument("--k1", type=int, default=20, help="neighbours in a k-reciprocal set (default 20)")
    parser.add_argument("--k2", type=int, default=6, help="neighbours averaged over (default 6)")
    parser.add_argument("--lambda", type=float, default=0.3, dest="lambda_value", help="weight of the distance itself")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's choice)")
    parser.add_argument("--output", metavar="JSON", help="write the rows here as JSON")
    args = parser.parse_args(argv)

    if args.threads > 0:
        torch.set_num_threads(args.threads)
    start = time.perf_counter()
    try:
        if args.output:
            prepare_output(args.output)
        path = find_input(args.features, "features")
        features = load_features(path)
        if not args.no_normalize:
            features = features.normalized()
        distances = chosen_distances(args.test_distance, args.unaligned)
        if args.test_distance == "all" and features.query_local is None:
            distances = ("global",)
        print(
            f"{path}: {len(features.query)} query and {len(features.gallery)} gallery images, "
            f"features {tuple(features.query.shape[1:])}"
        )
        options = {"k1": args.k1, "k2": args.k2, "lambda_value": args.lambda_value, "protocols": (args.protocol,)}
        evaluations = evaluate(features, distances, reranking=not args.no_reranking, **options)
        print(format_table(evaluations))
        results = {
            "dataset": path.name,
            "seconds": time.perf_counter() - start,
            "rows": [evaluation.row() for evaluation in evaluations],
            "machine": describe_machine(torch.device("cpu")),
        }
        if args.output:
            write_json(results, args.output)
            print(f"rows written to {args.output}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    return results


if __name__ == "__main__":
    main()
