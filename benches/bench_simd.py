"""Every operator at every SIMD level this processor has, forced in turn: time, and the same answers."""

import pytest

from benches.cpu import rows


@pytest.mark.parametrize("row", rows.one_an_operator(), ids=lambda row: row.name)
def test_simd(session, row, tmp_path):
    complaint = session.force_levels(row, tmp_path)
    assert complaint is None, complaint
