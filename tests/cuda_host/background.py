"""The tests of this folder once more in another flavour, in a process beside pytest's own."""

import os
import subprocess
import sys
from concurrent.futures import Future
from threading import Thread

from tests.cuda_host import build

PART = 2  # parameter sets of every test
LEFT_OUT = ("test_build.py", "test_machine.py", "test_sanitizers.py")

results: dict[str, Future] = {}  # by flavour: a CompletedProcess, or the RuntimeError that kept it from running
_running: list[subprocess.Popen] = []
_stopped = False


def asked_for(item) -> bool:
    return item.path.name == "test_sanitizers.py" and item.originalname == "test_every_operator"


def start(flavours):
    """Runs the flavours while the tests go on."""
    for flavour in flavours:
        results[flavour] = Future()
        Thread(target=_finish, args=(flavour,), daemon=True).start()


def stop():
    global _stopped
    _stopped = True
    for process in _running:
        process.kill()


def _finish(flavour):
    try:
        results[flavour].set_result(_run(flavour))
    except BaseException as error:
        results[flavour].set_exception(error)


def _run(flavour):
    command, environment = build.sanitized_python() if flavour == "asan" else ([sys.executable], dict(os.environ))
    environment = environment | {"REIDOPS_HOST_FLAVOURS": flavour, "REIDOPS_HOST_PART": str(PART)}
    environment |= {"PYTHONMALLOC": "default", "OMP_NUM_THREADS": "1"}
    command = [*command, "-m", "pytest", "-vx", "--capture=sys", "-p", "no:cacheprovider", str(build.HERE)]
    command += [f"--ignore={build.HERE / name}" for name in LEFT_OUT]
    if _stopped:
        raise RuntimeError("stopped")
    process = subprocess.Popen(
        command, env=environment, cwd=build.ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    _running.append(process)
    output, _ = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, output)
