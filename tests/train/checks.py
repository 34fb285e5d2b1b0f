"""What several tests do to runs, and ask of results and pictures."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from train import engine
from train.evaluate import TABLE

KEYS = {"distance", "reranking", "protocol", "rank1", "rank5", "rank10", "mAP", "mINP"}


class Killed(Exception):
    """Stands for the plug being pulled."""


@contextmanager
def killed(method, epoch):
    """A block whose run is killed when the trainer's method ("train_epoch" or "save") has done an epoch."""
    work = getattr(engine.Trainer, method)

    def work_and_die(trainer, argument):
        done = work(trainer, argument)
        if trainer.epoch == epoch:
            raise Killed
        return done

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(engine.Trainer, method, work_and_die)
        yield


def read_log(folder):
    """The lines of log.jsonl, without how long they took."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line if name not in ("seconds", "images_per_second")} for line in lines]


def scores(rows):
    """What a table shows of its rows, whatever model and data set they are of."""
    return [{name: row[name] for name in sorted(KEYS)} for row in rows]


def assert_table(rows):
    """The eight rows of the papers' table in their order, with fractions in them."""
    assert [(row["distance"], row["reranking"]) for row in rows] == [(d, r) for d in TABLE for r in (False, True)]
    assert all(KEYS <= set(row) for row in rows)
    assert all(0 <= row[name] <= 1 for row in rows for name in KEYS - {"distance", "reranking", "protocol"})


def assert_picture(path):
    """A readable image of some size with something on it."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    assert pixels.std() > 10
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
