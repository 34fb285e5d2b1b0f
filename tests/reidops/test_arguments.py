"""Arguments that Python would let through: words for flags, masked and packed arrays, forward-mode tangents."""

import numpy as np
import pytest
import torch

import reidops
from tests.reidops.inputs import random

X, STRIPES, LABELS = random(4, 3), random(4, 2, 3), torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: reidops.euclidean_distance(X, X, squared="yes"), "squared"),
        (lambda: reidops.euclidean_distance(X, X, validate="no"), "validate"),
        (lambda: reidops.dmli(STRIPES, STRIPES, aligned="diagonal"), "aligned"),
        (lambda: reidops.dmli_matrix(STRIPES, STRIPES, aligned=None), "aligned"),
        (lambda: reidops.batch_hard(X, LABELS, normalize="no"), "normalize"),
        (lambda: reidops.euclidean_distance(torch.nested.nested_tensor([X, X]), X), "x"),
        (lambda: reidops.knn(np.ma.masked_array(X.numpy(), mask=X.numpy() > 0), X.numpy(), 1), "query"),
        (lambda: reidops.k_reciprocal(X, X, k1=2, lambda_value="0.3"), "lambda_value"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_type_error_names_the_argument(call, name):
    with pytest.raises(TypeError, match=f"^{name} should be"):
        call()


def test_a_number_beyond_float_is_out_of_range():
    with pytest.raises(ValueError, match="^lambda_value should be between 0 and 1, got inf"):
        reidops.k_reciprocal(X, X, k1=2, lambda_value=10**400)


def test_a_column_of_a_packed_record_array():
    records = np.zeros(5, dtype=[("feature", "f4", (3,)), ("camera", "i2")])
    records["feature"] = random(5, 3).numpy()
    actual = reidops.euclidean_distance(records["feature"], records["feature"])
    np.testing.assert_array_equal(actual, reidops.euclidean_distance(random(5, 3), random(5, 3)).numpy())


def test_forward_mode_derivatives_are_refused():
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: reidops.euclidean_distance(x, X), (X,), (torch.ones_like(X),))


def test_what_unlooked_at_values_touch_is_nan_or_last(device):
    """validate=False: never an error, never a wrong finite number for what a NaN touches."""
    stripes = torch.rand(5, 4, 6, device=device)
    stripes[1, 2, 3] = float("nan")
    clean = stripes.clone().nan_to_num_()
    touched = torch.tensor([False, True, False, False, False])
    matrix = reidops.dmli_matrix(stripes, clean, validate=False)
    assert torch.equal(matrix.isnan().all(1).cpu(), touched) and torch.equal(matrix.isnan().any(1).cpu(), touched)
    assert torch.equal(reidops.dmli(stripes, clean, validate=False).isnan().cpu(), touched)
    flat = stripes.flatten(1)
    neighbors = reidops.knn(flat, clean.flatten(1), 5, validate=False)
    assert neighbors.distance[1].isinf().all() and neighbors.index[1].eq(0).all()
    assert neighbors.distance[touched.logical_not()].isfinite().all()
    distance = torch.rand(3, 6, device=device)
    distance[0, 2] = float("nan")
    ids = torch.tensor([2, 3, 4], device=device), torch.tensor([0, 1, 2, 3, 4, 5], device=device)
    scores = reidops.rank_metrics(distance, *ids, validate=False)
    assert scores.average_precision[0].item() == 1 / 6
    assert reidops.k_reciprocal(flat[:2], flat[2:], k1=2, k2=1, validate=False).shape == (2, 3)
