"""A backbone trained without labels: it learns, it resumes, it is known by what made it."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from potstill.data import Normalize
from potstill.experts import backbones as names
from potstill.experts import selfsupervised as room
from potstill.experts.backbones import backbone_for, identify, self_training
from potstill.experts.selfsupervised import SelfSupervision, train_backbone
from potstill.nets.backbone import FILE, open_backbone, own_backbone
from potstill.run import ArtifactError, DivergedError, InputError
from potstill.run.checkpoint import load_state, save_state

NETWORK = "convnet-d2-w8-bn"
SMALL = {"network": NETWORK, "epochs": 3, "batch": 16, "hidden": 16, "projection": 8}
HOW = SelfSupervision(**SMALL)


@pytest.fixture
def real(make_blobs):
    return make_blobs((20, 14, 10), channels=3)


def state(backbone):
    return {name: value.clone() for name, value in backbone.body.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(folder):
    return json.loads((folder / "backbone.json").read_text())["about"]["losses"]


@pytest.mark.parametrize(("objective", "share"), [("simclr", 0.9), ("barlow", 0.8)])
def test_training_lowers_the_loss(make_blobs, run, tmp_path, objective, share):
    how = SelfSupervision(**{**SMALL, "objective": objective, "epochs": 12, "lr": 3e-3})
    train_backbone(make_blobs((30, 30, 30), channels=3), how, run, tmp_path)
    found = losses(tmp_path)
    assert len(found) == 12 and sum(found[-3:]) < share * sum(found[:3])


def test_it_is_frozen_and_other_than_its_beginning(real, run, tmp_path):
    found = train_backbone(real, HOW, run, tmp_path)
    start = own_backbone(NETWORK, real.shape, run.generator("self/weights"), Normalize.fit(real))
    before, after = start.body.state_dict(), state(found)
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert not found.body.training and not any(p.requires_grad for p in found.body.parameters())
    assert found.label == f"simclr-{NETWORK}" and found.size == (8, 8)
    assert torch.equal(found.transform.mean, Normalize.fit(real).mean)
    assert not (tmp_path / "training.safetensors").exists()


def test_whatever_a_kill_at_the_end_kept_from_being_done_is_done(real, run, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("potstill.nets.backbone.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            train_backbone(real, HOW, run, tmp_path)
    assert not (tmp_path / FILE).exists()
    with monkeypatch.context() as patch:
        patch.setattr(room.Keeper, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            train_backbone(real, HOW, run, tmp_path)
    assert (tmp_path / "training.safetensors").exists()
    train_backbone(real, HOW, run, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["backbone.json", FILE]


def test_same_seed_same_key_in_any_folder(real, run, tmp_path):
    before = torch.get_rng_state()
    first = train_backbone(real, HOW, run, tmp_path / "a")
    again = train_backbone(real, HOW, run, tmp_path / "b")
    other = train_backbone(real, HOW, run.with_(seed=1), tmp_path / "c")
    assert first.key == again.key != other.key
    assert torch.equal(before, torch.get_rng_state())
    opened = open_backbone(str(tmp_path / "a"), real.shape, run.generator("x"), first.transform)
    assert opened.key == first.key


def test_a_finished_one_is_read(real, run, tmp_path, monkeypatch):
    first = train_backbone(real, HOW, run, tmp_path)
    monkeypatch.setattr(room, "_Training", None)
    assert train_backbone(real, HOW, run, tmp_path).key == first.key


class Killed(BaseException):
    pass


def killed_at(monkeypatch, at):
    original = room._Training._loss

    def dying(self, step):
        if step == at:
            raise Killed
        return original(self, step)

    monkeypatch.setattr(room._Training, "_loss", dying)


@pytest.mark.parametrize("objective", ["simclr", "barlow"])
def test_a_killed_training_ends_with_the_same_key(real, run, tmp_path, monkeypatch, objective):
    how = replace(HOW, objective=objective)
    whole = train_backbone(real, how, run, tmp_path / "whole")
    for at in (1, 2, 3, 5):  # two steps an epoch: within the first, at and within later ones
        folder = tmp_path / f"{at}"
        with monkeypatch.context() as patch:
            killed_at(patch, at)
            with pytest.raises(Killed):
                train_backbone(real, how, run, folder)
        assert (folder / "training.safetensors").exists()
        seen, original = [], room._Training._loss
        with monkeypatch.context() as patch:
            patch.setattr(room._Training, "_loss", lambda *a: (seen.append(a[1]), original(*a))[1])  # noqa: B023
            found = train_backbone(real, how, run, folder)
        assert seen == list(range(at, 6)) and not (folder / "training.safetensors").exists()
        assert found.key == whole.key and equal(state(found), state(whole))
        assert losses(folder) == losses(tmp_path / "whole")


def test_labels_are_not_looked_at(real, run, tmp_path):
    draw = torch.Generator().manual_seed(0)
    other = replace(real, labels=real.labels[torch.randperm(len(real), generator=draw)])
    assert other.checksum != real.checksum and not torch.equal(other.labels, real.labels)
    first = train_backbone(real, HOW, run, tmp_path / "a")
    second = train_backbone(other, HOW, run, tmp_path / "b")
    assert equal(state(first), state(second)) and first.key == second.key


def test_grey_images(make_blobs, run, tmp_path):
    real = make_blobs((12, 12))
    found = train_backbone(real, replace(HOW, epochs=1), run, tmp_path)
    assert found.channels == 1 and torch.isfinite(found.features(torch.rand(2, 1, 8, 8))).all()


def test_the_two_views_of_an_image_are_drawn_apart(real, run, tmp_path, monkeypatch):
    seen, original = [], room.self_supervised

    def watching(objective, a, b, temperature):
        seen.append((a.detach(), b.detach()))
        return original(objective, a, b, temperature)

    monkeypatch.setattr(room, "self_supervised", watching)
    train_backbone(real, replace(HOW, epochs=1), run, tmp_path)
    assert len(seen) == 2 and all(a.shape == b.shape == (16, 8) for a, b in seen)
    for a, b in seen:
        assert ((a - b).norm(dim=1) > 1e-3 * a.norm(dim=1)).all()
    assert not torch.allclose(seen[0][0], seen[1][0])


def test_fewer_images_than_a_batch(make_blobs, run, tmp_path):
    found = train_backbone(make_blobs((4, 3), channels=3), replace(HOW, batch=256), run, tmp_path)
    assert len(losses(tmp_path)) == 3 and found.dim == 32


@pytest.mark.parametrize(
    "changes",
    [{"color": 0.0}, {"color": 1.0}, {"flip": 0.0}, {"crop_min": 1.0}, {"temperature": 0.5}],
)
def test_every_choice_changes_the_weights(real, run, tmp_path, changes):
    first = train_backbone(real, replace(HOW, epochs=1), run, tmp_path / "a")
    other = train_backbone(real, replace(HOW, epochs=1, **changes), run, tmp_path / "b")
    assert first.key != other.key


def test_the_step_size_warms_up_and_falls_to_nothing():
    shares = [room._share(step, 100) for step in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == 1 and all(a > b for a, b in pairwise(shares[5:]))
    assert shares[52] == pytest.approx(0.5, abs=0.02) and 0 < shares[-1] < 0.001
    assert room._share(0, 1) == 1


def test_the_folder_of_another_training_is_refused(real, run, tmp_path, monkeypatch):
    train_backbone(real, HOW, run, tmp_path / "done")
    with pytest.raises(InputError, match="done holds a backbone of another training"):
        train_backbone(real, replace(HOW, lr=2e-3), run, tmp_path / "done")
    with pytest.raises(InputError, match="another training"):
        train_backbone(real, HOW, run.with_(seed=1), tmp_path / "done")
    with monkeypatch.context() as patch:
        killed_at(patch, 3)
        with pytest.raises(Killed):
            train_backbone(real, HOW, run, tmp_path / "part")
    with pytest.raises(InputError, match="part holds an unfinished backbone of another training"):
        train_backbone(real, replace(HOW, lr=2e-3), run, tmp_path / "part")


@pytest.mark.parametrize("damage", ["cut", "renamed"])
def test_a_damaged_state_is_named_and_not_gone_on_with(
    real, run, tmp_path, monkeypatch, caplog, damage
):
    whole = train_backbone(real, HOW, run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        killed_at(patch, 3)
        with pytest.raises(Killed):
            train_backbone(real, HOW, run, tmp_path)
    path = tmp_path / "training.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:99])
    else:
        tensors, facts = load_state(path)
        tensors["head.other"] = tensors.pop("head.last.bias")
        save_state(path, tensors, facts)
    assert train_backbone(real, HOW, run, tmp_path).key == whole.key
    (said,) = (record.message for record in caplog.records if record.levelname == "WARNING")
    assert "training.safetensors is" in said and said.endswith("; beginning again")
    assert not path.exists()


def test_a_damaged_backbone_is_refused(real, run, tmp_path):
    train_backbone(real, replace(HOW, epochs=1), run, tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-3])
    with pytest.raises(ArtifactError, match="is damaged"):
        train_backbone(real, HOW, run, tmp_path)


def test_a_loss_that_is_not_finite_stops(real, run, tmp_path, monkeypatch):
    original = room.self_supervised
    monkeypatch.setattr(room, "self_supervised", lambda *a: original(*a) * float("nan"))
    with pytest.raises(DivergedError, match="loss of epoch 0 is not finite; lower lr"):
        train_backbone(real, HOW, run, tmp_path)
    assert not (tmp_path / "training.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", "byol"),
        ("network", "resnet99"),
        ("epochs", 0),
        ("batch", 1),
        ("hidden", 0),
        ("projection", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("temperature", -1.0),
        ("weight_decay", -1.0),
        ("color", 1.5),
        ("crop_min", 0.0),
        ("flip", 2.0),
    ],
)
def test_bad_fields_are_named(name, value):
    with pytest.raises(InputError, match=f"{name} is {value!r}"):
        SelfSupervision(**{name: value})


# by name


def test_names_of_what_is_trained_here():
    assert self_training("dinov2_vitb") is None and self_training(NETWORK) is None
    how = self_training(f"self:{NETWORK}/barlow", epochs=4, flip=0.0)
    assert (how.network, how.objective, how.epochs, how.flip) == (NETWORK, "barlow", 4, 0.0)
    assert self_training(f"self:{NETWORK}").objective == "simclr"
    for bad in ("self:", "self:dinov2_vitb", "self:convnet-x"):
        with pytest.raises(InputError, match=f"backbone is '{bad}'; after self: name one of our"):
            self_training(bad)
    with pytest.raises(InputError, match="objective is 'moco'"):
        self_training(f"self:{NETWORK}/moco")


def test_a_self_name_trains_once_and_is_kept(real, run, monkeypatch):
    name = f"self:{NETWORK}"
    first = backbone_for(name, real, run, epochs=1)
    assert first.label == f"simclr-{NETWORK}" and first.device == "cpu"
    monkeypatch.setattr(room, "_Training", None)
    assert backbone_for(name, real, run, epochs=1).key == first.key
    with pytest.raises(TypeError):  # another training
        backbone_for(name, real, run, epochs=1, flip=0.0)


def test_other_names_are_opened(real, run):
    found = backbone_for(NETWORK, real, run)
    draw = run.generator("backbone/weights")
    assert found.key == own_backbone(NETWORK, real.shape, draw, Normalize.fit(real)).key


def test_images_it_cannot_be_shown_are_refused(make_blobs, real, run, tmp_path):
    train_backbone(make_blobs((12, 12)), replace(HOW, epochs=1), run, tmp_path)
    with pytest.raises(InputError, match="takes 1 channel"):
        backbone_for(str(tmp_path), real, run)


def test_identify_opens_nothing_and_tells_apart(real, run, make_blobs, tmp_path, monkeypatch):
    folder = tmp_path / "b"
    trained = train_backbone(real, replace(HOW, epochs=1), run, folder)
    for module, what in (
        (room, "_Training"),
        (names, "train_backbone"),
        (names, "open_backbone"),
    ):
        monkeypatch.setattr(module, what, None)
    own = f"self:{NETWORK}"
    found = [
        identify(own, real, run),
        identify(own, real, run, epochs=7),
        identify(own, real, run, flip=0.0),
        identify(f"{own}/barlow", real, run),
        identify(own, real, run.with_(seed=1)),
        identify(own, make_blobs((9, 9), channels=3), run),
        identify("dinov2_vitb", real, run),
        identify("dinov2_vitb@196", real, run),
        identify(NETWORK, real, run),
        identify(NETWORK, real, run.with_(seed=1)),
        identify(str(folder), real, run),
        identify(f"{folder}+imagenet", real, run),
    ]
    assert len(set(found)) == len(found)
    assert identify(own, real, run) == found[0]
    # a folder is its content, wherever it lies
    moved = folder.rename(tmp_path / "moved")
    assert identify(str(moved), real, run.with_(seed=3)) == found[10]
    assert trained.key == json.loads((moved / "backbone.json").read_text())["key"]
    assert not (run.cache / "backbones").exists()


def test_identify_of_a_folder_of_others_changes_with_its_files(real, run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    first = identify(str(tmp_path), real, run)
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    second = identify(str(tmp_path), real, run)
    assert first != second == identify(f"{tmp_path}", real, run)
