"""Sets with labels of views or a projection: stored, shown to others, scored."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.test_pairings import tiny

import potstill
from potstill.data import Normalize
from potstill.evaluation import (
    PROTOCOLS,
    evaluate,
    find_protocol,
    receiver_bytes,
    with_projection,
    with_view_labels,
)
from potstill.evaluation.labels import tier_of
from potstill.evaluation.teaching import teaching
from potstill.experts.heads import train_head
from potstill.methods.distribution.dm import DM
from potstill.nets import create, predict
from potstill.nets.backbone import open_backbone, own_backbone, save_backbone
from potstill.run import ArtifactError, InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic import tensors as exact
from potstill.synthetic.iterates import load_iterate, save_iterate


@pytest.fixture
def teacher():
    draw = torch.Generator().manual_seed(1)
    return create("convnet-d2-w8-in", channels=1, size=8, classes=2, generator=draw)


@pytest.fixture
def viewed(syn, teacher, run) -> SyntheticSet:
    return with_view_labels(syn, [teacher], run, epochs=3, cutmix=0.5)


@pytest.fixture
def projected(syn, real, run, tmp_path) -> SyntheticSet:
    draw = torch.Generator().manual_seed(2)
    backbone = own_backbone("convnet-d2-w8-in", real.shape, draw, Normalize.fit(real))
    save_backbone(backbone, "convnet-d2-w8-in", tmp_path / "backbone", {})
    head = train_head(real, backbone, run, least_steps=10)
    return with_projection(syn, head, str(tmp_path / "backbone"))


def test_they_travel_and_other_sets_keep_their_version(syn, viewed, projected, tmp_path):
    assert exact.facts_of(syn)["version"] == 1
    both = replace(viewed, projection=projected.projection)
    for number, own in enumerate((viewed, projected, both)):
        own.save(tmp_path / str(number))
        again = SyntheticSet.load(tmp_path / str(number))
        assert again.checksum == own.checksum != syn.checksum
        assert exact.facts_of(own)["version"] == 3
        for name, value in exact.tensors_of(own).items():
            assert torch.equal(exact.tensors_of(again)[name], value)
    assert (viewed.label_tier, projected.label_tier, syn.label_tier) == (
        "stored", "projected", "hard",
    )  # fmt: skip
    assert viewed.quantized().view_labels is viewed.view_labels


def test_views_belong_to_decoded_images(viewed, teacher):
    images, views = viewed.decoded()[0], viewed.view_labels
    assert views.values.shape == (3, 16, 2)
    rows = torch.arange(16)
    said = predict(teacher, views.view(images, rows, 2), viewed.transform).softmax(1)
    torch.testing.assert_close(views.targets(rows, 2, 2), said, atol=2e-3, rtol=2e-3)


def test_others_find_each_view_in_a_table(viewed, tmp_path):
    from datasets import load_dataset

    viewed.save(tmp_path / "a")
    told = load_dataset(
        str(tmp_path / "a"), f"views-{viewed.checksum}", split="train", cache_dir=tmp_path / "hf"
    )
    assert len(told) == 3 * 16
    row, own = told[16 + 5], viewed.view_labels
    assert (row["epoch"], row["image"]) == (1, 5)
    assert row["box"] == own.box[1, 5].tolist() and row["flip"] == int(own.flip[1, 5])
    assert row["log_probability"] == own.values[1, 5].tolist()
    assert row["patch"] == own.patch[1, 5].tolist() and row["partner"] == int(own.partner[1, 5])
    images = load_dataset(str(tmp_path / "a"), split="train", cache_dir=tmp_path / "hf")
    assert len(images) == 16
    assert len(potstill.load(tmp_path / "a")) == 16  # one split, whatever stands beside it


def test_the_cards_lines_train_a_network(viewed, teacher, tmp_path):
    viewed.save(tmp_path / "a")
    text = (tmp_path / "a" / "README.md").read_text()
    assert "a soft label of every view in 3 epochs" in text
    (code,) = re.findall(r"```python\n(import torch\nfrom torch.nn.functional.*?)```", text, re.S)
    before = [p.clone() for p in teacher.parameters()]
    known = {
        "synthetic": SyntheticSet.load(tmp_path / "a"), "images": viewed.decoded()[0],
        "network": teacher, "optimizer": torch.optim.SGD(teacher.parameters(), 0.1),
        "epochs": 2, "batch": 4,
    }  # fmt: skip
    exec(code, known)
    moved = [not torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True)]
    assert any(moved)


def test_a_loader_without_potstill_sees_what_the_teacher_saw(syn, teacher, run, tmp_path):
    """examples/stored_labels.py, to the bit."""
    whole = replace(syn, decode={"kind": "pixels"})
    viewed = with_view_labels(whole, [teacher], run, epochs=3, cutmix=0.9)
    code = Path(__file__).parents[2] / "examples" / "stored_labels.py"
    known: dict[str, Any] = {"__name__": "example"}
    exec(compile(code.read_text(), code, "exec"), known)
    lines = code.read_text().partition("def stored")[2].partition("def main")[0]
    assert "potstill" not in lines
    place, own = viewed.save(tmp_path / "a"), viewed.view_labels
    for epoch in range(own.epochs):
        batches = list(known["stored"](str(place), epoch, 3))
        x, told = (torch.cat(parts) for parts in zip(*batches, strict=True))
        rows = torch.arange(4)
        images, labels = own.view(viewed.images, rows, epoch), own.targets(rows, epoch, 2)
        left = list(range(4))
        for one, label in zip(x, told, strict=True):
            (i, *_) = [i for i in left if torch.equal(images[i], one)]
            assert torch.equal(labels[i], label)
            left.remove(i)
        assert not left and len({len(seen) for seen, _ in batches}) == 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.99])
def test_a_damaged_store_of_labels_is_one_sentence(viewed, tmp_path, share):
    path = viewed.save(tmp_path / "a") / "synthetic.safetensors"
    whole = path.read_bytes()
    start = whole.index(viewed.view_labels.values.contiguous().view(torch.uint8).numpy().tobytes())
    at = start + int(share * viewed.view_labels.values.nbytes)
    for broken in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:at]):
        path.write_bytes(broken)
        with pytest.raises(ArtifactError) as caught:
            SyntheticSet.load(tmp_path / "a")
        assert "\n" not in str(caught.value) and "synthetic.safetensors" in str(caught.value)


def test_tiers_and_bytes(syn, viewed, projected):
    labels = viewed.view_labels
    assert labels.nbytes == 3 * 16 * (2 * 2 + 4 * 4 + 1 + 4 + 4 * 2)
    assert receiver_bytes(viewed, "stored") == viewed.nbytes == syn.nbytes + labels.nbytes
    assert receiver_bytes(viewed, "hard") == receiver_bytes(projected, "hard") == syn.nbytes
    own = projected.projection
    assert receiver_bytes(projected, "projected", held=100) == syn.nbytes + own.nbytes + 100
    assert receiver_bytes(syn, "online", held=100) == syn.nbytes + 100
    assert [tier_of(viewed, how) for how in ("auto", "hard", "views", "online")] == [
        "stored", "hard", "stored", "online",
    ]  # fmt: skip
    with pytest.raises(InputError, match="has no labels of it"):
        receiver_bytes(syn, "projected")


def score(syn, real, test, run, **how):
    protocol = PROTOCOLS["quick"].with_(epochs=4, batch=8, augment="color_crop")
    found = find_protocol(protocol, **how)
    names = {"network": "mlp-w8", "runs": 1, "run": run}
    return evaluate(syn, real, test, protocol=found, quantized=False, **names)[0]


def test_students_learn_what_the_protocol_says(syn, viewed, projected, real, make_blobs, run):
    test = make_blobs((6, 6), seed=1)
    stored, hard = score(viewed, real, test, run), score(viewed, real, test, run, labels="hard")
    assert (stored.label_tier, hard.label_tier) == ("stored", "hard")
    assert stored.receiver_bytes == viewed.nbytes and hard.receiver_bytes == syn.nbytes
    assert stored.random["accuracy"] == hard.random["accuracy"]  # classes in either case
    how = {"labels": "online", "teacher": "convnet-d2-w8-in", "temperature": 2.0}
    online = score(syn, real, test, run, **how)
    assert online.label_tier == online.random["label_tier"] == "online"
    assert online.teacher["prior"] == "balanced_softmax"
    assert online.receiver_bytes == syn.nbytes + online.teacher["bytes"]
    assert score(syn, real, test, run, **how).accuracy == online.accuracy
    by_map = score(projected, real, test, run)
    assert by_map.label_tier == "projected" and by_map.teacher["key"] == projected.projection.key
    assert by_map.receiver_bytes == projected.nbytes + by_map.teacher["bytes"]
    assert potstill.evaluation.Score.from_json(json.loads(json.dumps(by_map.to_json())))


def test_students_regress_to_the_logits_of_one_or_several_teachers(
    syn, viewed, real, make_blobs, run
):
    test, loss = make_blobs((6, 6), seed=1), {"loss": "logits"}
    stored = score(viewed, real, test, run, **loss, labels="views")
    assert stored.label_tier == "stored" and "teacher's logits" in stored.protocol["description"]
    assert stored.random["accuracy"] == score(viewed, real, test, run).random["accuracy"]
    how = {"labels": "online", "teacher": "convnet-d2-w8-in+mlp-w8"}
    both = score(syn, real, test, run, **how, **loss)
    assert [one["network"] for one in both.teacher["teachers"]] == how["teacher"].split("+")
    names = how["teacher"].split("+")
    alone = [score(syn, real, test, run, **how | {"teacher": name}) for name in names]
    assert both.teacher["bytes"] == sum(one.teacher["bytes"] for one in alone)
    protocol = find_protocol(PROTOCOLS["quick"], **how)
    parts = [teaching(syn, real, find_protocol(protocol, teacher=name), run) for name in names]
    x = syn.transform(real.batch(torch.arange(5)))
    mean = (parts[0].logits(x) + parts[1].logits(x)) / 2
    torch.testing.assert_close(teaching(syn, real, protocol, run).logits(x), mean)
    with pytest.raises(InputError, match="network is 'mpl-w8'"):
        score(syn, real, test, run, **how | {"teacher": "mlp-w8+mpl-w8"})
    with pytest.raises(
        InputError, match="loss is 'logits' but the artifact has no labels of views"
    ):
        score(syn, real, test, run, **loss)


def test_nobody_looks_before_the_share_that_is_named(syn, real, make_blobs, run):
    """Students that do not move are equally good at every look, of which the first is taken."""
    looks = PROTOCOLS["quick"].with_(selection="test_max", test_every=2, epochs=10, lr=0.0)
    how = {"network": "mlp-w8", "runs": 2, "run": run, "baseline": False, "quantized": False}
    test = make_blobs((6, 6), seed=1)
    for share, first in ((0.0, 2), (0.5, 6), (0.9, 10)):
        (found,) = evaluate(syn, real, test, protocol=looks.with_(looks_from=share), **how)
        assert found.epochs == [first, first]


def test_the_projection_labels_augmented_images_in_its_own_space(projected, real, run):
    from potstill.evaluation.teaching import teaching

    who = teaching(projected, real, PROTOCOLS["quick"], run)
    rgb = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(4))
    draw = torch.Generator().manual_seed(0)
    own = projected.projection
    backbone = open_backbone(own.backbone, real.shape, draw, projected.transform)
    expected = backbone.features(rgb) @ own.weight.T + own.bias
    found = who.logits(projected.transform(rgb))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_impossible_wishes_are_refused(syn, viewed, projected, real, make_blobs, run, tmp_path):
    test = make_blobs((6, 6), seed=1)
    for how, sentence in (
        ({"labels": "views"}, "labels is 'views' but the artifact has none"),
        ({"labels": "projected"}, "the artifact has no projection"),
        ({"labels": "online"}, "name a network as the teacher"),
        ({"teacher": "mlp-w8"}, "name a network as the teacher"),
        ({"labels": "online", "teacher": "mpl-w8"}, "network is 'mpl-w8'"),
        ({"labels": "hard", "temperature": 2.0}, "temperature is 2 with labels 'hard'"),
        ({"loss": "kl"}, "the artifact has no soft labels; use loss=auto"),
        ({"temperature": 2.0}, "temperature is 2 but the artifact has no soft labels"),
        ({"loss": "squared_error", "prior": "crt"}, "which knows none"),
        ({"loss": "kl", "prior": "balanced_softmax"}, "a loss of classes"),
        ({"labels": "veiws"}, "labels is 'veiws'"),
    ):
        with pytest.raises(InputError, match=sentence):
            score(syn, real, test, run, **how)
    with pytest.raises(InputError, match="no meaning for a teacher's labels"):
        score(viewed, real, test, run, prior="remix")
    with pytest.raises(InputError, match="teacher is given under probe"):
        find_protocol("probe", teacher="mlp-w8")
    with pytest.raises(InputError, match="beside weights or regression targets"):
        replace(viewed, weights=torch.ones(4))
    with pytest.raises(InputError, match="projection gives 2 classes"):
        replace(projected, classes=("a", "b", "c"))
    other = replace(projected, projection=replace(projected.projection, key="0" * 16))
    with pytest.raises(InputError, match="of a backbone with key 0000000000000000"):
        score(other, real, test, run)
    path = save_iterate(tmp_path, 3, viewed.images)
    with pytest.raises(ArtifactError, match="has view_labels, which an iterate has not"):
        load_iterate(path, viewed)


def test_whole_images_beside_tiles_have_a_teacher_of_whole_images(make_blobs, run):
    real, test = make_blobs((12, 8), size=16), make_blobs((6, 6), size=16, seed=1)
    tiled = tiny(DM, canvas="tiled", factor=2)(real, 2, run)
    plain = tiny(DM)(real, 2, run)
    protocol = find_protocol(PROTOCOLS["quick"], labels="online", teacher="convnet-d2-w8-in")
    of_tiles = teaching(tiled, real, protocol, run)
    of_whole = teaching(tiled, real, protocol, run, whole=True)
    alone = teaching(plain, real, protocol, run)
    assert "shrunk 2" in of_tiles.facts["sees"] and "shrunk" not in of_whole.facts["sees"]
    assert of_whole.facts == alone.facts != of_tiles.facts  # one transform, one teacher
    assert teaching(plain, real, protocol, run, whole=True) is None
    x = tiled.transform.forward(real.batch(torch.arange(4)))
    assert not torch.equal(of_tiles.logits(x), of_whole.logits(x))
    how = {"labels": "online", "teacher": "convnet-d2-w8-in"}
    beside = {s: score(s_, real, test, run, **how).random["accuracy"]
              for s, s_ in {"tiled": tiled, "plain": plain}.items()}  # fmt: skip
    assert beside["tiled"] == beside["plain"]  # the same images, by the same teacher


def test_protocols_of_old_keep_their_hashes():
    assert PROTOCOLS["quick"].hash == "e071a630"
    changed = find_protocol("quick", loss="squared_error")
    assert changed.name == "quick-squared_error" and changed.hash != "e071a630"
    assert "squared error" in changed.describe()
    online = find_protocol("quick", labels="online", teacher="convnet-w32-in", temperature=4.0)
    assert "convnet-w32-in, balanced_softmax" in online.describe()
    assert "temperature 4" in online.describe()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("views.box"),
        lambda t: t.update({"views.flip": t["views.flip"].to(torch.int32)}),
        lambda t: t.update({"views.values": t["views.values"][:, :8]}),
        lambda t: t.update({"views.more": t["views.flip"] + 0}),
        lambda t: t.update({"views.partner": t["views.partner"] + 16}),
        lambda t: t.pop("projection.bias"),
        lambda t: t.update({"projection.weight": t["projection.weight"][:, :0]}),
        lambda t: t.update({"projection.bias": t["projection.bias"] * float("nan")}),
    ],
)
def test_files_that_do_not_fit_are_refused(viewed, projected, tmp_path, change):
    """With a right checksum: somebody has written them so."""
    from safetensors.torch import save

    both = replace(viewed, projection=projected.projection)
    place = both.save(tmp_path / "a")
    tensors, facts = exact.tensors_of(both), exact.facts_of(both)
    change(tensors)
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    facts["checksum"] = exact.checksum(tensors, facts)
    Path(place / "synthetic.safetensors").write_bytes(
        save(tensors, metadata={"potstill": json.dumps(facts, sort_keys=True)})
    )
    with pytest.raises(ArtifactError, match=r"synthetic\.safetensors"):
        SyntheticSet.load(place)
