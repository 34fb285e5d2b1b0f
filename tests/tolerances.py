"""How closely each operator has to agree with its float64 reference: the one table that all tests read.

Half types are computed in float32 and rounded once at the end, so their tolerance is that one rounding.
"""

import torch

RELATIVE = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}

GRADIENT = {  # as RELATIVE, but relative to the largest entry of the gradient: entries are sums that cancel
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2.0**-9,
    torch.bfloat16: 2.0**-6,
}

K_RECIPROCAL = {  # absolute: the result lies in 0 to 1; away from ties
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
}

RANK_METRICS = 1e-12  # given the same distances

PUBLISHED_K_RECIPROCAL = 3e-3  # the published NumPy program keeps its weights in float16

_SMALLEST = {torch.float16: 2.0**-24, torch.bfloat16: 0.0, torch.float32: 0.0, torch.float64: 0.0}


def assert_relative(actual, expected, dtype=None, relative_to="entry"):
    """Every entry is as close to the expected one as RELATIVE asks of its type.

    `relative_to="largest"` measures against the largest expected entry, for results that are sums that cancel.
    """
    dtype = dtype or actual.dtype
    assert actual.dtype == dtype, f"result is {actual.dtype}, wanted {dtype}"
    _assert_within(actual, expected, RELATIVE[dtype], _SMALLEST[dtype], relative_to)


def assert_gradient(actual, expected):
    """Every entry of the gradient is as close as GRADIENT asks of its type."""
    _assert_within(actual, expected, GRADIENT[actual.dtype], _SMALLEST[actual.dtype], "largest")


def assert_k_reciprocal(actual, expected):
    """Every re-ranked distance is as close as K_RECIPROCAL asks of its type."""
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0, atol=K_RECIPROCAL[actual.dtype])


def _assert_within(actual, expected, relative, smallest, relative_to):
    actual = actual.detach().cpu().double()
    expected = expected.detach().double()
    assert actual.shape == expected.shape, f"result has shape {tuple(actual.shape)}, wanted {tuple(expected.shape)}"
    if relative_to == "largest":
        largest = expected.abs().max().item() if expected.numel() else 0.0
        torch.testing.assert_close(actual, expected, rtol=0, atol=max(relative * largest, smallest))
    else:
        torch.testing.assert_close(actual, expected, rtol=relative, atol=smallest)
