"""Fixtures of the experts' tests."""

import pytest

from potstill.experts import trainer


@pytest.fixture
def real(make_blobs):
    return make_blobs((16, 8, 4))


@pytest.fixture
def calls(monkeypatch):
    """(start, stop) of every member that is trained."""
    seen, original = [], trainer.train_many

    def spy(nets, *args, **options):
        starts = [getattr(start, "epoch", start) for start in options["start_epoch"]]
        seen.extend((start, options["stop_epoch"]) for start in starts)
        return original(nets, *args, **options)

    monkeypatch.setattr(trainer, "train_many", spy)
    return seen
