"""What is looked at is not removed from the cache, and is once nobody looks any more."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from potstill.data import Normalize, load
from potstill.experts import train_experts
from potstill.experts.features import collect_features
from potstill.nets import Training
from potstill.nets.backbone import own_backbone
from potstill.run.cache import found_in, remove


def mapped_images(real, run, tmp_path):
    path = tmp_path / "set.npz"
    if not path.exists():
        np.savez(path, images=real.rows()[:, 0].numpy(), labels=real.labels.numpy())
    return load(path, memory_gb=1e-9, cache=run.cache, quiet=True)


def experts(real, run, tmp_path):
    training = Training(epochs=1, batch=16, momentum=0.0)
    return train_experts(real, Normalize.fit(real), "mlp-w8", 1, training, run, epochs=[0, 1])


def bank(real, run, tmp_path):
    draw, transform = torch.Generator().manual_seed(0), Normalize.fit(real)
    backbone = own_backbone("mlp-w8", real.shape, draw, transform)
    return collect_features(real, backbone, run, bank=True)


@pytest.mark.parametrize("again", [False, True], ids=["made", "read"])
@pytest.mark.parametrize("make", [mapped_images, experts, bank])
def test_what_is_looked_at_stays(real, run, tmp_path, make, again):
    if again:
        make(real, run, tmp_path)
        gc.collect()
    seen = make(real, run, tmp_path)
    (found,) = found_in(run.cache)
    assert found.what and not remove(found) and found.path.exists()
    del seen
    gc.collect()
    assert remove(found) and not found.path.exists()
