"""The named tuples that operators return; compiled operators and their float64 reference share them."""

from typing import Any, NamedTuple

Array = Any  # a torch.Tensor, or a NumPy array when the operator was given NumPy arrays


class BatchHard(NamedTuple):
    """The hardest positive and the hardest negative of every anchor in a batch of B samples.

    Attributes:
        positive_distance: (B,) distance to the farthest sample of the anchor's label; 0 if that is the anchor.
        negative_distance: (B,) distance to the nearest sample of any other label.
        positive_index: (B,) int64, which sample that positive is.
        negative_index: (B,) int64, which sample that negative is.
    """

    positive_distance: Array
    negative_distance: Array
    positive_index: Array
    negative_index: Array


class Neighbors(NamedTuple):
    """The k nearest gallery rows of each of M queries, nearest first, equal distances by the lowest gallery index.

    Attributes:
        distance: (M, k) distances, ascending.
        index: (M, k) int64 gallery rows.
    """

    distance: Array
    index: Array


class RankMetrics(NamedTuple):
    """How well M queries rank the gallery.

    Attributes:
        cmc: (R,) float64; ``cmc[r - 1]`` is the share of queries whose first match is among the best r.
        mean_ap: mean average precision, 0 to 1.
        mean_inp: mean inverse negative penalty, 0 to 1: the matches found per image looked at until the last match.
        num_valid: how many queries have a match left in the gallery.
        average_precision: (M,) float64; NaN for the queries that the protocol leaves out.
    """

    cmc: Array
    mean_ap: Array
    mean_inp: Array
    num_valid: Array
    average_precision: Array
