"""make bench: its options, the fixture that measures a row, and the table at the end."""

import os

import pytest

from benches.cpu import report, rows
from benches.cpu.machine import THREADS
from benches.cpu.session import Session


def pytest_addoption(parser):
    group = parser.getgroup("reidops")
    group.addoption("--only", help="comma-separated parts of the names of rows (default: all)")
    group.addoption("--quick", action="store_true", help="fewer calls, no memory, nothing that takes many seconds")
    group.addoption("--update", action="store_true", help="keep the figures in results/ though some are worse")


def pytest_configure(config):
    if os.environ.get("OPENBLAS_NUM_THREADS") != str(THREADS):
        raise pytest.UsageError(f"OPENBLAS_NUM_THREADS should be {THREADS}, as make bench sets it")

    def say(text: str) -> None:
        with config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            config.pluginmanager.get_plugin("terminalreporter").write_line(text)

    config.session_of_benches = Session(say, config.getoption("--quick"), config.getoption("--update"))


def pytest_collection_modifyitems(config, items):
    try:
        chosen = rows.select(config.getoption("--only"))
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    quick = config.getoption("--quick")

    def wanted(row: rows.Row) -> bool:
        return row.name in chosen and not (quick and row.once)

    left = [item for item in items if wanted(item.callspec.params["row"])]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left


@pytest.fixture
def session(request) -> Session:
    return request.config.session_of_benches


@pytest.fixture
def bench(session, benchmark):
    """Measures a row; fails where its result is wrong or a committed ratio has worsened."""

    def measure(row: rows.Row) -> None:
        complaint = session.bench(row, benchmark)
        if complaint:
            pytest.fail(complaint, pytrace=False)

    return measure


def pytest_terminal_summary(terminalreporter, config):
    session = config.session_of_benches
    if not (session.rows or session.threads or session.simd):
        return
    terminalreporter.write_line(f"\n{report.summary(session.results())}\n")
    if session.reference is None:
        terminalreporter.write_line(f"no committed figures of {session.machine}: nothing to compare with")
    for sentence in session.worse.values():
        terminalreporter.write_line(f"WORSE: {sentence}")
    terminalreporter.write_line(f"written: {session.write()}")
