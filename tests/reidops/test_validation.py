"""Bad input: a ValueError or TypeError that names the argument and says what came, for every operator."""

import math
import re

import numpy as np
import pytest
import torch

import reidops
from reidops import reference
from tests.reidops.inputs import integers, random

NAN, INF = float("nan"), float("inf")


def spoiled(values, bad):
    """The values with one of them replaced."""
    values = values.clone()
    values.view(-1)[values.numel() // 2] = bad
    return values


X, Y = random(4, 6), random(5, 6, seed=1)
STRIPES_X, STRIPES_Y = random(4, 3, 6), random(4, 3, 6, seed=1)
LABELS = torch.tensor([0, 1, 0, 1])
SQUARE = random(4, 4).abs()
LOCAL_QUERY, LOCAL_GALLERY = random(4, 3, 6), random(5, 3, 6, seed=1)
IDS = integers(4, high=3), integers(5, high=3)
CAMERAS = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 1, 1])
DISTANCES = random(4, 5).abs(), SQUARE, random(5, 5).abs()
ATTENTION = random(2, 3, 4), random(2, 3, 4, seed=1), random(2, 3, 4, seed=2)

# every operator with arguments that are right, by name, so that one at a time can be made wrong
RIGHT = {
    "euclidean_distance": {"x": X, "y": Y},
    "shortest_path": {"cost": STRIPES_X},
    "shortest_path_indices": {"cost": SQUARE},
    "dmli": {"x": STRIPES_X, "y": STRIPES_Y},
    "dmli_matrix": {"x": LOCAL_QUERY, "y": LOCAL_GALLERY},
    "batch_hard": {"features": X, "labels": LABELS},
    "batch_hard_from_distance": {"distance": SQUARE, "labels": LABELS},
    "knn": {"query": X, "gallery": Y, "k": 2},
    "k_reciprocal": {"query": X, "gallery": Y, "k1": 3, "k2": 2},
    "k_reciprocal local": {
        "query": None, "gallery": None, "query_local": LOCAL_QUERY, "gallery_local": LOCAL_GALLERY, "k1": 3, "k2": 2,
    },
    "k_reciprocal_from_distance": dict(
        zip(("query_gallery", "query_query", "gallery_gallery"), DISTANCES, strict=True), k1=3, k2=2
    ),
    "rank_metrics": {"distance": DISTANCES[0], "query_ids": IDS[0], "gallery_ids": IDS[1]},
    "rank_metrics cameras": {
        "distance": DISTANCES[0], "query_ids": IDS[0], "gallery_ids": IDS[1],
        "query_cameras": CAMERAS[0], "gallery_cameras": CAMERAS[1],
    },
    "channel_attention": dict(zip(("query", "key", "value"), ATTENTION, strict=True)),
}  # fmt: skip

TENSORS = [(case, name) for case, right in RIGHT.items() for name, v in right.items() if isinstance(v, torch.Tensor)]
FLOATS = [(case, name) for case, name in TENSORS if RIGHT[case][name].is_floating_point()]
INTEGERS = [(case, name) for case, name in TENSORS if not RIGHT[case][name].is_floating_point()]
PAIRED = [(case, name) for case, name in FLOATS if name != next(iter(n for c, n in FLOATS if c == case))]
FOLLOWERS = PAIRED + INTEGERS  # the arguments whose device and dtype have to be those of the first
INTEGER_OPTIONS = [(c, n) for c, right in RIGHT.items() for n, v in right.items() if isinstance(v, int)] + [
    ("k_reciprocal", "topk"), ("rank_metrics", "max_rank"), ("rank_metrics", "num_draws"), ("rank_metrics", "seed"),
]  # fmt: skip
VALIDATED = (
    "euclidean_distance", "shortest_path", "dmli", "batch_hard", "batch_hard_from_distance", "channel_attention",
)  # fmt: skip
NUMPY = ("euclidean_distance", "shortest_path_indices", "dmli_matrix", "knn", "k_reciprocal", "rank_metrics")


def assert_refused(error, words, case, **wrong):
    """Calling with those arguments wrong raises exactly `error`, whose message has all the words."""
    with pytest.raises(error) as caught:
        getattr(reidops, case.split()[0])(**{**RIGHT[case], **wrong})
    assert caught.type is error, caught.type
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", str(caught.value)), (word, str(caught.value))


@pytest.mark.parametrize("case", RIGHT)
def test_right_arguments_pass(case):
    getattr(reidops, case.split()[0])(**RIGHT[case])


@pytest.mark.parametrize("came", ["a word", 3.5, [[1.0, 2.0]]], ids=["str", "float", "list"])
@pytest.mark.parametrize("case, name", TENSORS)
def test_not_a_tensor(case, name, came):
    assert_refused(TypeError, [name, type(came).__name__], case, **{name: came})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("case, name", FLOATS)
def test_values_that_are_not_floats(case, name, dtype):
    assert_refused(TypeError, [name, str(dtype).removeprefix("torch.")], case, **{name: RIGHT[case][name].to(dtype)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize("case, name", INTEGERS)
def test_labels_that_are_not_integers(case, name, dtype):
    assert_refused(TypeError, [name, str(dtype).removeprefix("torch.")], case, **{name: RIGHT[case][name].to(dtype)})


@pytest.mark.parametrize("case, name", PAIRED)
def test_mixed_dtypes(case, name):
    assert_refused(TypeError, [name, "float32", "float64"], case, **{name: RIGHT[case][name].double()})


@pytest.mark.parametrize("case, name", FOLLOWERS)
def test_mixed_devices(case, name):
    assert_refused(ValueError, [name, "cpu", "meta"], case, **{name: RIGHT[case][name].to("meta")})


@pytest.mark.parametrize("case, name", TENSORS)
def test_too_many_and_too_few_dimensions(case, name):
    right = RIGHT[case][name]
    flat = right.reshape(-1) if right.ndim > 1 else right[0]
    assert_refused(ValueError, [name, str(tuple(flat.shape))], case, **{name: flat})
    if case != "shortest_path":  # which takes any number of them
        deep = right[None]
        assert_refused(ValueError, [name, str(tuple(deep.shape))], case, **{name: deep})


@pytest.mark.parametrize("case, name", [
    (case, name) for case, name in FOLLOWERS
    if RIGHT[case][name].ndim > 1 and (case, name) != ("channel_attention", "value")  # of a length of its own
])  # fmt: skip
def test_another_feature_size(case, name):
    longer = torch.cat([RIGHT[case][name]] * 2, dim=-1)
    assert_refused(ValueError, [name, str(tuple(longer.shape))], case, **{name: longer})


# another number of rows than the argument that it belongs to; sets of different sizes are right elsewhere
ROWS = [("dmli", "y"), ("k_reciprocal_from_distance", "query_query"), ("k_reciprocal_from_distance", "gallery_gallery"),
        ("channel_attention", "key"), ("channel_attention", "value"), *INTEGERS]  # fmt: skip


@pytest.mark.parametrize("case, name", ROWS)
def test_another_number_of_rows(case, name):
    for values in (RIGHT[case][name][1:], torch.cat([RIGHT[case][name]] * 2)):
        assert_refused(ValueError, [name, str(tuple(values.shape))], case, **{name: values})


# evaluation operators and batch_hard refuse empty sets; elsewhere no rows are a right answer's business
EMPTY = [(case, name) for case, name in FLOATS if case.split()[0] in (
    "batch_hard", "batch_hard_from_distance", "knn", "k_reciprocal", "k_reciprocal_from_distance", "rank_metrics",
    "shortest_path_indices",
)]  # fmt: skip


@pytest.mark.parametrize("case, name", EMPTY)
def test_empty_sets(case, name):
    empty = RIGHT[case][name][:0]
    assert_refused(ValueError, [name, str(tuple(empty.shape))], case, **{name: empty})


@pytest.mark.parametrize("case, name", FLOATS)
def test_no_features(case, name):
    if case.startswith("rank_metrics"):
        return  # covered by test_empty_sets: its last dimension is the gallery
    none = {n: RIGHT[case][n][..., :0] for c, n in FLOATS if c == case}
    first = next(iter(none))
    assert_refused(ValueError, [first, str(tuple(none[first].shape))], case, **none)


def test_values_without_length_or_of_other_channels():
    for value in (ATTENTION[2][..., :0], ATTENTION[2][:, :2], ATTENTION[2][:, :0]):
        words = ["value", "(2, 3, V)", str(tuple(value.shape))]
        assert_refused(ValueError, words, "channel_attention", value=value)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("case, name", FLOATS)
def test_values_that_are_not_finite(case, name, bad):
    wrong = {**RIGHT[case], name: spoiled(RIGHT[case][name], bad)}
    operator = getattr(reidops, case.split()[0])
    if not math.isnan(bad) and name == "distance":
        operator(**wrong)  # infinitely far is far
        return
    place = np.unravel_index(wrong[name].numel() // 2, wrong[name].shape)
    with pytest.raises(ValueError, match=re.escape(f"{bad} at {[int(i) for i in place]}")) as caught:
        operator(**wrong)
    assert re.match(rf"{name}\b", str(caught.value))


def test_finite_values_whose_sum_overflows_pass():
    large = torch.full((4, 4), 3e38)
    assert torch.equal(reidops.batch_hard_from_distance(large, LABELS).negative_distance, large[0])
    assert torch.equal(reidops.shortest_path(large[:, :, None, None]), large)
    assert reidops.rank_metrics(large, LABELS, LABELS).num_valid == 4


HUGE = {
    "euclidean_distance": ["x", "y"],
    "dmli": ["x", "y"],
    "dmli unaligned": ["x", "y"],
    "dmli_matrix": ["x", "y"],
    "dmli_matrix unaligned": ["x", "y"],
    "batch_hard": ["features"],
    "knn": ["query", "gallery"],
    "k_reciprocal": ["query", "gallery"],
    "k_reciprocal local": ["query_local", "gallery_local"],
    "channel_attention": ["query", "key", "value"],
}


@pytest.mark.parametrize("case", HUGE)
def test_finite_values_whose_squares_overflow(case, device):
    """Either refused by name, or answered: as in float64 as far as float32 reaches, infinite beyond, and never NaN."""
    right = {**RIGHT[case.removesuffix(" unaligned")], **({"aligned": False} if "unaligned" in case else {})}
    right.update({name: 1e30 * right[name] for name in HUGE[case]})
    if "y" in right:
        right["y"][0] = right["x"][0]
    right = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in right.items()}
    try:
        result = getattr(reidops, case.split()[0])(**right, **({"validate": True} if case in VALIDATED else {}))
    except ValueError as error:
        assert str(error).startswith(tuple(HUGE[case]))
        return
    expected = getattr(reference, case.split()[0])(**right)
    pairs = [(result, expected)] if isinstance(result, torch.Tensor) else zip(result, expected, strict=True)
    for actual, wanted in pairs:
        assert not actual.isnan().any()
        finite = actual.cpu().isfinite()
        torch.testing.assert_close(actual.cpu()[finite].to(wanted), wanted[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["batch_hard", "batch_hard_from_distance"])
def test_an_anchor_without_a_negative(name):
    labels = torch.full((4,), 3)
    assert_refused(ValueError, ["labels", "anchor 0", "label 3", "no negative"], name, labels=labels)


def test_a_distance_matrix_that_is_not_square():
    distance = random(4, 5).abs()
    assert_refused(ValueError, ["distance", "(4, 5)"], "batch_hard_from_distance", distance=distance)


@pytest.mark.parametrize("case", ["dmli", "dmli_matrix"])
def test_unaligned_images_of_different_numbers_of_stripes(case):
    y = torch.cat([RIGHT[case]["y"]] * 2, dim=1)
    getattr(reidops, case)(RIGHT[case]["x"], y)
    assert_refused(ValueError, ["y", "6", "3"], case, y=y, aligned=False)


@pytest.mark.parametrize("case, options, words", [
    ("knn", {"k": 0}, ["k", "0"]),
    ("knn", {"k": -1}, ["k", "-1"]),
    ("knn", {"k": 6}, ["k", "5", "6"]),
    ("k_reciprocal", {"k1": 0}, ["k1", "0"]),
    ("k_reciprocal", {"k1": 9}, ["k1", "8", "9"]),
    ("k_reciprocal", {"k1": 9, "variant": "torchreid"}, ["k1", "8", "9"]),
    ("k_reciprocal", {"k1": 10, "variant": "jaccard"}, ["k1", "9", "10"]),
    ("k_reciprocal", {"k2": 0}, ["k2", "0"]),
    ("k_reciprocal", {"k2": 10}, ["k2", "9", "10"]),
    ("k_reciprocal", {"lambda_value": -0.1}, ["lambda_value", "-0.1"]),
    ("k_reciprocal", {"lambda_value": 1.1}, ["lambda_value", "1.1"]),
    ("k_reciprocal", {"lambda_value": NAN}, ["lambda_value", "nan"]),
    ("k_reciprocal", {"variant": "zhong2018"}, ["variant", "zhong2017", "zhong2018"]),
    ("k_reciprocal", {"topk": 0}, ["topk", "0"]),
    ("k_reciprocal", {"topk": 6}, ["topk", "5", "6"]),
    ("k_reciprocal local", {"k1": 9}, ["k1", "8", "9"]),
    ("k_reciprocal_from_distance", {"k1": 9}, ["k1", "8", "9"]),
    ("k_reciprocal_from_distance", {"k2": 10}, ["k2", "9", "10"]),
    ("k_reciprocal_from_distance", {"lambda_value": 2}, ["lambda_value", "2.0"]),
    ("k_reciprocal_from_distance", {"variant": "none"}, ["variant", "none"]),
    ("rank_metrics", {"max_rank": 0}, ["max_rank", "0"]),
    ("rank_metrics", {"num_draws": 0}, ["num_draws", "0"]),
    ("rank_metrics", {"seed": 2**63}, ["seed", str(2**63)]),
    ("rank_metrics", {"protocol": "market"}, ["protocol", "market1501", "market"]),
    ("knn", {"precision": "low"}, ["precision", "highest", "low"]),
    ("dmli_matrix", {"precision": "low"}, ["precision", "highest", "low"]),
    ("k_reciprocal", {"precision": "low"}, ["precision", "highest", "low"]),
])  # fmt: skip
def test_options_out_of_range(case, options, words):
    assert_refused(ValueError, words, case, **options)


@pytest.mark.parametrize("came", [2.0, "2"])
@pytest.mark.parametrize("case, name", INTEGER_OPTIONS)
def test_options_that_are_not_integers(case, name, came):
    assert_refused(TypeError, [name, type(came).__name__], case, **{name: came})


def test_half_a_pair():
    assert_refused(ValueError, ["gallery", "query"], "k_reciprocal", gallery=None)
    assert_refused(ValueError, ["query", "gallery"], "k_reciprocal", query=None)
    assert_refused(ValueError, ["query_local", "gallery_local"], "k_reciprocal", gallery_local=LOCAL_GALLERY)
    assert_refused(ValueError, ["query", "gallery"], "k_reciprocal", query=None, gallery=None)
    assert_refused(ValueError, ["query_cameras", "gallery_cameras"], "rank_metrics", query_cameras=CAMERAS[0])


def test_local_and_global_features_of_different_sets():
    local = {"query_local": LOCAL_QUERY[1:], "gallery_local": LOCAL_GALLERY}
    assert_refused(ValueError, ["query_local", "(3, 3, 6)"], "k_reciprocal", **local)
    local = {"query_local": LOCAL_QUERY, "gallery_local": LOCAL_GALLERY[1:]}
    assert_refused(ValueError, ["gallery_local", "(4, 3, 6)"], "k_reciprocal", **local)


def test_negative_distances():
    for name in ("query_gallery", "query_query", "gallery_gallery"):
        wrong = {name: spoiled(RIGHT["k_reciprocal_from_distance"][name], -0.5)}
        assert_refused(ValueError, [name, "-0.5"], "k_reciprocal_from_distance", **wrong)


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03", "mudeep"])
def test_no_query_with_a_match(protocol):
    for wrong in ({"query_ids": IDS[0] + 100}, {"gallery_ids": torch.full((5,), -1)}):
        assert_refused(ValueError, ["query_ids", "gallery_ids", "4"], "rank_metrics", **wrong, protocol=protocol)
    cameras = {"gallery_cameras": torch.zeros_like(CAMERAS[1])}
    assert_refused(ValueError, ["query_ids", "gallery_ids"], "rank_metrics cameras", **cameras, protocol=protocol)


@pytest.mark.parametrize("case", NUMPY)
def test_tensors_and_arrays_in_one_call(case):
    names = [name for c, name in TENSORS if c == case]
    arrays = {name: RIGHT[case][name].numpy() for name in names}
    for name in names[1:]:
        assert_refused(TypeError, [name], case, **{name: arrays[name]})
    getattr(reidops, case)(**{**RIGHT[case], **arrays})


@pytest.mark.parametrize("array", [np.array([["a", "b"]]), np.ones((4, 6), dtype=object), np.ones((4, 6)) * 1j])
def test_arrays_of_other_things(array):
    assert_refused(TypeError, ["x", str(array.dtype)], "euclidean_distance", x=array, y=np.ones((5, 6)))


def test_arrays_in_the_other_byte_order():
    swapped = X.numpy().astype(X.numpy().dtype.newbyteorder())
    assert_refused(TypeError, ["x", str(swapped.dtype)], "euclidean_distance", x=swapped, y=Y.numpy())


def test_sparse_tensors():
    assert_refused(TypeError, ["x", "sparse_coo"], "euclidean_distance", x=X.to_sparse())


@pytest.mark.parametrize("case", VALIDATED)
def test_values_are_looked_at_only_when_asked(case, device):
    right = {name: values.to(device) for name, values in RIGHT[case].items()}
    name = next(iter(right))
    wrong = {**right, name: spoiled(right[name], NAN)}
    with pytest.raises(ValueError, match=rf"{name}.*nan"):
        getattr(reidops, case)(**wrong, validate=True)
    getattr(reidops, case)(**wrong, validate=False)
    if device.type == "cuda":
        getattr(reidops, case)(**wrong)
