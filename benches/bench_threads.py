"""Every operator on 1, 2 and more threads than there are cores: time, and the same bits."""

import pytest

from benches.cpu import rows


@pytest.mark.parametrize("row", rows.one_an_operator(), ids=lambda row: row.name)
def test_threads(session, row):
    complaint = session.count_threads(row)
    assert complaint is None, complaint
