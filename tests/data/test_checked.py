"""Memory-mapped images: each block is compared with its check when it is first looked at."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from potstill.data import Normalize, checked, load, store
from potstill.experts import train_pool
from potstill.nets import Training
from potstill.run import ArtifactError

MAPPED = 1e-9  # GB


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(checked, "_BLOCK", 3 * 64)  # three digits; the last block has fewer


@pytest.fixture
def source(tmp_path):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(40) % 4)
    return tmp_path / "set.npz"


def opened(source, memory_gb=MAPPED):
    return load(source, memory_gb=memory_gb, quiet=True)


def damage(tmp_path, row):
    """Another bit in one row of the cached images."""
    (path,) = (tmp_path / "cache" / "decoded").glob("*/images.npy")
    content = bytearray(path.read_bytes())
    content[len(content) - 64 * (40 - row)] ^= 1
    path.write_bytes(content)
    return path


def compared(monkeypatch):
    seen = []
    original = checked.xxhash.xxh3_64_intdigest
    monkeypatch.setattr(
        checked.xxhash, "xxh3_64_intdigest", lambda own: seen.append(len(own)) or original(own)
    )
    return seen


def test_a_block_is_compared_once_and_only_where_it_is_looked_at(source, monkeypatch):
    whole = opened(source).rows().clone()
    real = opened(source)
    seen = compared(monkeypatch)
    assert torch.equal(real.rows(torch.tensor([4, 38, 5])), whole[[4, 38, 5]])
    assert seen == [3, 3]
    assert torch.equal(real.rows(slice(2, 7)), whole[2:7]) and seen == [3] * 4
    assert torch.equal(real.batch(torch.arange(40)), whole.float() / 255)
    assert seen == [3] * 13 + [1]
    real.rows(), real.batch(torch.tensor([39]))
    assert len(seen) == 14


USES = {
    "rows": lambda real, run: real.rows(torch.tensor([17])),
    "a slice": lambda real, run: real.rows(slice(10, 20)),
    "a batch": lambda real, run: real.batch(torch.arange(40)),
    "another device": lambda real, run: real.to("cpu"),
    "a small selection": lambda real, run: real.select(torch.arange(16, 24)),
    "a large selection": lambda real, run: real.select(torch.arange(40) != 0),
    "a long tail": lambda real, run: real.long_tailed(1.5),
    "a transform": lambda real, run: Normalize.fit(real),
    "a training": lambda real, run: train_pool(
        real, Normalize(torch.tensor([0.5]), torch.tensor([0.5])), "mlp-w8", 1,
        Training(epochs=1, batch=8), run,
    ),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_a_damaged_block_is_one_sentence_and_then_decoded_anew(
    source, tmp_path, run, monkeypatch, use
):
    if use == "a large selection":
        monkeypatch.setattr(store, "_LARGE_SELECTION", 1)
    checksum, whole = opened(source).checksum, opened(source).rows().clone()
    path = damage(tmp_path, 17)
    real = opened(source)  # nothing has been looked at
    real.rows(torch.tensor([0, 39]))
    fault = rf"^{re.escape(str(path))} is damaged at row 15 or soon after; run the same command"
    with pytest.raises(ArtifactError, match=fault):
        USES[use](real, run)
    assert not path.exists()
    again = opened(source)
    USES[use](again, run)
    assert torch.equal(again.rows(), whole) and again.checksum == checksum


def test_what_stays_mapped_in_a_selection_is_checked_in_turn(source, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_LARGE_SELECTION", 1)
    real = opened(source)
    part = real.select(torch.arange(39, 19, -1))
    assert part.mapped is not None and part.mapped is not real.mapped
    seen = compared(monkeypatch)
    assert torch.equal(part.rows(), real.images[torch.arange(39, 19, -1)]) and len(seen) == 7
    damage(tmp_path, 17)  # of the entry; the selection has a file of its own
    assert torch.equal(part.rows(), real.images[torch.arange(39, 19, -1)])


def test_in_memory_everything_is_compared_at_once(source, tmp_path, caplog):
    whole = opened(source, memory_gb=1.0)
    path = damage(tmp_path, 39)
    again = opened(source, memory_gb=1.0)
    assert torch.equal(again.images, whole.images) and again.mapped is None
    (said,) = caplog.messages
    assert said == f"{path} is damaged at row 39 or soon after; decoding again"


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [2, 3, 4, 31], [5] * 8])
def test_checks_do_not_depend_on_the_pieces_that_images_come_in(pieces):
    images = np.random.default_rng(1).integers(0, 256, (40, 1, 8, 8), dtype=np.uint8)
    checks = checked.Checks(images.shape)
    for part in np.split(images, np.cumsum(pieces)[:-1]):
        checks.add(part)
    blocks = [images[first : first + 3] for first in range(0, 40, 3)]
    assert checks.all().tolist() == [checked.xxhash.xxh3_64_intdigest(b.data) for b in blocks]


def test_nobody_reads_the_images_of_a_set_past_its_checks():
    direct = re.compile(
        r"\b(real|train|test|rest|watched?|held|images|other)\.images(\[|\.(split|to|cpu|clone)\(|,)"
    )
    source = Path(checked.__file__).parents[1]
    texts = {path.name: path.read_text() for path in source.rglob("*.py")}
    hits = [(name, hit[0]) for name, text in texts.items() for hit in direct.finditer(text)]
    assert not hits, hits
    assert direct.search("predict(student, images.images, transform)")
    assert direct.search("rgb(real.images[rows])")
