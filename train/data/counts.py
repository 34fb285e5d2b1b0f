"""How many identities and images the known data sets have, and how a folder that was read differs from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Counts(NamedTuple):
    """What one subset holds."""

    identities: int
    images: int


SubsetCounts = Mapping[str, Counts]  # by subset: train, query, gallery

_MARKET1501 = {  # Zheng et al., ICCV 2015
    "train": Counts(751, 12_936),
    "query": Counts(750, 3_368),
    "gallery": Counts(751, 15_913),  # the 750 and the distractors; its folder has 19,732 images, 3,819 of them junk
}
_DUKEMTMCREID = {  # Zheng et al., ICCV 2017
    "train": Counts(702, 16_522),
    "query": Counts(702, 2_228),
    "gallery": Counts(1_110, 17_661),  # the 702 and 408 whom one camera alone saw
}
_MSMT17 = {  # Wei et al., CVPR 2018, with the validation list (2,373 images of the same people) in the training set
    "train": Counts(1_041, 32_621),
    "query": Counts(3_060, 11_659),
    "gallery": Counts(3_060, 82_161),
}
_CUHK03_DETECTED = {  # the new protocol, Zhong et al., CVPR 2017; classic splits: see train.data.cuhk03
    "train": Counts(767, 7_365),
    "query": Counts(700, 1_400),
    "gallery": Counts(700, 5_332),
}
_CUHK03_LABELED = _CUHK03_DETECTED | {"train": Counts(767, 7_368), "gallery": Counts(700, 5_328)}

# A loader gives its data set the entry that it should have; a data set without one is not checked.
OFFICIAL: dict[str, SubsetCounts] = {
    "market1501": _MARKET1501,
    "market1501_partial": _MARKET1501,  # other pixels, the same files
    "dukemtmcreid": _DUKEMTMCREID,
    "dukemtmcreid_partial": _DUKEMTMCREID,
    "msmt17": _MSMT17,
    "msmt17 --without-validation": _MSMT17 | {"train": Counts(1_041, 30_248)},
    "cuhk03": _CUHK03_DETECTED,
    "cuhk03 --cuhk03-labeled": _CUHK03_LABELED,
    "cuhk03np_detected": _CUHK03_DETECTED,
    "cuhk03np_labeled": _CUHK03_LABELED,
}


def count_warning(name: str, found: SubsetCounts, official: SubsetCounts) -> str | None:
    """One line that names every subset whose counts are not the official ones; None where all are.

    Example:
        >>> count_warning("tiny", {"query": Counts(2, 1_999)}, {"query": Counts(2, 2_000)})
        'warning: not the official counts of tiny: query has 2 ids and 1,999 images (official: 2 and 2,000)'
    """
    differences = [
        f"{subset} has {found[subset].identities:,} ids and {found[subset].images:,} images "
        f"(official: {wanted.identities:,} and {wanted.images:,})"
        for subset, wanted in official.items()
        if found[subset] != wanted
    ]
    return f"warning: not the official counts of {name}: {', '.join(differences)}" if differences else None
