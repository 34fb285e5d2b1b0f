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
