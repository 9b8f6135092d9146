import json
from dataclasses import fields, replace

import pytest

from potstill.data import DSA
from potstill.data.views import Views
from potstill.evaluation.probe import in_use
from potstill.evaluation.protocol import PROTOCOLS, Protocol, find_protocol
from potstill.nets import Sharpness, Training
from potstill.run import InputError

TINY = Protocol(name="tiny", training=Training(epochs=4, batch=8))

CHANGES = {
    "sharpness": Sharpness(0.02),
    "epochs": 5, "batch": 9, "optimizer": "adamw", "lr": 0.02, "momentum": 0.8,
    "weight_decay": 1e-4, "schedule": "cosine", "milestones": (0.5,), "gamma": 0.3,
    "reset_momentum": True, "augment": "crop", "cutmix": 0.1, "sampling": "balanced",
    "epochs_by_ipc": ((1, 3),), "labels": "hard", "learned_lr": True, "held_out": 2,
    "mixing": "remix", "max_norm": 0.1, "prior": "balanced_softmax", "loss": "squared_error",
    "temperature": 2.0, "epoch_images": 3, "nesterov": True, "warmup": 0.2,
    "drop_last": True, "ema": 0.9, "stretch": 2.0, "resized": Views(noise=0.0),
    "batch_by_ipc": ((1, 3),),
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_every_fact_changes_the_hash(field):
    changed = TINY.with_(**{field: CHANGES[field]})
    assert changed.hash != TINY.hash
    assert changed.name == "tiny*"


def test_the_changes_above_cover_every_field():
    covered = {*CHANGES, "name", "training", "selection", "test_every", "teacher", "teacher_prior"}
    covered |= {"label_scale", "centred"}  # of squared error alone, see below
    covered |= {"hard_weight", "looks_from"}  # of a loss and of looks, see below
    assert covered == {f.name for f in fields(Training)} | {f.name for f in fields(Protocol)}


def test_how_it_descends_is_told():
    changed = TINY.with_(nesterov=True, warmup=0.25, schedule="cosine")
    assert "Nesterov momentum 0.9, weight decay" in changed.describe()
    assert "cosine after a rise over 0.25 of the epochs" in changed.describe()
    assert "Nesterov" not in TINY.describe() and "rise" not in TINY.describe()


def test_selection_and_its_interval_change_the_hash():
    val = TINY.with_(selection="val", test_every=2)
    test_max = TINY.with_(selection="test_max", test_every=2)
    assert len({TINY.hash, val.hash, test_max.hash, val.with_(test_every=1).hash}) == 4


def test_what_stands_beside_a_loss_or_looks_changes_the_hash():
    regress = TINY.with_(loss="logits", labels="views")
    weighed = regress.with_(hard_weight=0.1)
    looks = TINY.with_(selection="test_max", test_every=2)
    late = looks.with_(looks_from=0.5)
    assert len({p.hash for p in (TINY, regress, weighed, looks, late)}) == 5
    for change, sentence in (
        ({"hard_weight": 0.1}, "hard_weight is 0.1 with loss 'auto'"),
        ({"loss": "logits", "labels": "soft"}, "loss is 'logits' with labels 'soft'"),
        ({"loss": "logits", "labels": "views", "temperature": 2.0}, "temperature is 2"),
        ({"looks_from": 0.5}, "looks_from is 0.5 with selection 'last'"),
        ({"resized": Views()}, "noise is 0.5 in resized"),
        ({"stretch": 0.5}, "stretch is 0.5"),
    ):
        with pytest.raises(InputError, match=sentence):
            TINY.with_(**change)


def test_protocols_of_the_decoupled_family_are_the_papers():
    """Yin et al. 2023, Sun et al. 2024, Shao et al. 2024 and RLDD (AAAI 2026), released code."""
    rded, edc, rldd = PROTOCOLS["rded"], PROTOCOLS["edc"], PROTOCOLS["rldd"]
    sre2l, fkd = PROTOCOLS["sre2l"], PROTOCOLS["sre2l-fkd"]
    for one, epochs in ((rded, 300), (edc, 1000), (rldd, 1000), (sre2l, 400), (fkd, 300)):
        t = one.training
        assert (t.epochs, t.optimizer, t.lr, t.weight_decay) == (epochs, "adamw", 1e-3, 0.01)
    assert [rded.training_for(ipc).batch for ipc in (1, 10, 50)] == [10, 50, 100]
    assert [edc.training_for(ipc).batch for ipc in (1, 10, 50)] == [10, 25, 25]
    assert (sre2l.training.batch, fkd.training.batch, rldd.training.batch) == (128, 1024, 25)
    assert [p.temperature for p in (rded, sre2l, fkd)] == [20, 30, 20]
    assert (fkd.labels, rded.labels, edc.loss, edc.hard_weight) == (
        "views",
        "online",
        "logits",
        0.025,
    )
    rates = [rded.training.lr_at(epoch) for epoch in (0, 150, 300)]
    assert rates == pytest.approx([1e-3, 0.5e-3 * (1 + 0.5**0.5), 0.5e-3])  # ends at half
    steps = [rldd.training.lr_at(epoch) for epoch in (799, 800, 900, 950)]
    assert steps == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4]) and rldd.training.ema == 0.99
    assert rldd.teacher_prior == "glmc" and edc.teacher.count("+") == 5
    looks = {
        n: p for n, p in PROTOCOLS.items() if n.endswith("-published") and p.labels == "online"
    }
    assert {n: (p.test_every, p.looks_from) for n, p in looks.items()} == {
        "rded-published": (10, 0.8), "edc-published": (20, 0.0), "rldd-published": (20, 0.0),
    }  # fmt: skip
    for name, published in looks.items():
        assert published.training == PROTOCOLS[name.removesuffix("-published")].training
    said = PROTOCOLS["rded-published"].describe()
    assert (
        "stretched by 2" in said and "batch by ipc 10 from 1" in said and "in the last 0.2" in said
    )
    assert "and 0.025 cross-entropy" in edc.describe() and "mixup" in sre2l.describe()
    assert "crops from 0.08 of the area, mirrors, color_rotate" in rldd.describe()
    assert PROTOCOLS["rded"].with_(batch=7).training_for(10).batch == 7


def test_a_teacher_changes_the_hash_and_so_does_its_prior():
    online = TINY.with_(labels="online", teacher="mlp-w8")
    plain = online.with_(teacher_prior="plain")
    assert len({TINY.hash, online.hash, plain.hash, online.with_(teacher="mlp-w9").hash}) == 4
    with pytest.raises(InputError, match="teacher_prior is 'plain' without a teacher"):
        TINY.with_(teacher_prior="plain")


def test_hash_ignores_name_field_order_and_number_type():
    assert replace(TINY, name="other").hash == TINY.hash
    training = Training(cutmix=0, weight_decay=5e-4, batch=8, epochs=4)
    assert Protocol(training=training, name="tiny").hash == TINY.hash
    assert len(TINY.hash) == 8 and int(TINY.hash, 16) >= 0


def test_hashes_of_named_protocols_are_distinct_and_pinned():
    hashes = {name: protocol.hash for name, protocol in PROTOCOLS.items()}
    assert len(set(hashes.values())) == len(hashes)
    # A changed pin means that scores measured before can no longer be compared by their hash.
    assert (hashes["default"], hashes["quick"]) == ("8697d7fd", "e071a630")


def facts(name):
    t = PROTOCOLS[name].training
    return (t.epochs, t.batch, t.optimizer, t.lr, t.weight_decay, t.gamma, t.cutmix)


def test_published_hyper_parameters():
    """Zhao et al. 2021 (DC), Zhao & Bilen 2021 (DSA), Kim et al. 2022, Wang et al. 2025."""
    assert facts("dc") == (300, 256, "sgd", 0.01, 5e-4, 0.1, 0.0)
    assert facts("dsa") == (1000, 256, "sgd", 0.01, 5e-4, 0.1, 0.0)
    assert facts("idc") == (1000, 64, "sgd", 0.01, 5e-4, 0.2, 0.5)
    assert facts("ncfm") == (2000, 128, "adamw", 1e-3, 0.01, 0.5, 0.5)
    frepo = PROTOCOLS["frepo"]  # Zhou et al. 2022
    assert (frepo.loss, frepo.training.ema) == ("squared_error", 0.995)
    assert (frepo.training.optimizer, frepo.training.weight_decay) == ("adamw", 0)
    assert [frepo.training_for(ipc).epochs for ipc in (1, 10, 50)] == [1000, 2000, 5000]
    rfad = PROTOCOLS["rfad"]  # Loo et al. 2022
    assert (rfad.loss, rfad.label_scale, rfad.centred) == ("squared_error", 8, True)
    assert (rfad.training.momentum, rfad.training.weight_decay) == (0.9, 0)
    bptt = PROTOCOLS["rat-bptt"].training  # Feng et al. 2024
    assert (bptt.optimizer, bptt.lr, bptt.augment.ops) == ("adamw", 1e-3, ("flip", "rotate"))
    for name in ("dc", "dsa", "idc"):
        assert PROTOCOLS[name].training.momentum == 0.9
    assert PROTOCOLS["dc"].training.augment is None


def test_published_schedules():
    rates = {n: [PROTOCOLS[n].training.lr_at(e) for e in range(2000)] for n in ("dsa", "idc")}
    assert rates["dsa"][499] == 0.01 and rates["dsa"][500] == pytest.approx(0.001)
    assert PROTOCOLS["dsa"].training.reset_momentum and PROTOCOLS["dc"].training.reset_momentum
    assert rates["idc"][665] == 0.01 and rates["idc"][667] == pytest.approx(0.002)
    assert rates["idc"][832] == pytest.approx(0.002) and rates["idc"][834] == pytest.approx(4e-4)
    ncfm = PROTOCOLS["ncfm"].training
    expected = [1e-3 * 0.5**k for k in (0, 1, 2, 3, 4)]
    assert [ncfm.lr_at(e) for e in (399, 400, 800, 1200, 1999)] == pytest.approx(expected)


def test_published_augmentations():
    dsa, idc = PROTOCOLS["dsa"].training.augment, PROTOCOLS["idc"].training.augment
    assert dsa.rule == "dc" and set(dsa.ops) == {
        "color", "crop", "cutout", "flip", "scale", "rotate"
    }  # fmt: skip
    assert idc == dsa.__class__.parse("color_crop_flip_scale_rotate", rule="idc")
    assert PROTOCOLS["ncfm"].training.augment == idc
    assert "flip" not in PROTOCOLS["default-noflip"].training.augment.ops


def test_test_max_is_only_in_protocols_that_say_so():
    for name, protocol in PROTOCOLS.items():
        assert protocol.selection.startswith("test_max") == name.endswith("-published")
        assert ("TEST" in protocol.describe()) == name.endswith("-published")
    looks = {n: PROTOCOLS[f"{n}-published"].test_every for n in ("idc", "ncfm")}
    assert looks == {"idc": 250, "ncfm": 100}  # 4 and 20 looks


def test_quick_costs_a_tenth_of_default():
    quick, default = PROTOCOLS["quick"].training, PROTOCOLS["default"].training
    assert quick.epochs * 10 == default.epochs


def test_budget_by_ipc():
    tiny = PROTOCOLS["ncfm-tiny"]
    epochs = [tiny.training_for(ipc).epochs for ipc in (1, 9, 10, 49, 50, 100)]
    assert epochs == [2000, 2000, 300, 300, 40, 40]


def test_learned_lr_only_where_the_protocol_takes_it():
    assert PROTOCOLS["mtt"].training_for(10, syn_lr=0.03).lr == 0.03
    assert PROTOCOLS["mtt"].training_for(10).lr == 0.01
    assert PROTOCOLS["dsa"].training_for(10, syn_lr=0.03).lr == 0.01


def test_augment_is_the_users_choice():
    noflip = PROTOCOLS["default"].with_(augment="color_crop_scale_rotate")
    assert noflip.hash == PROTOCOLS["default-noflip"].hash
    assert noflip.training.augment.rule == "idc"
    assert PROTOCOLS["dsa"].with_(augment="crop").training.augment == DSA.parse("crop", rule="dc")
    assert PROTOCOLS["dsa"].with_(augment="none").training.augment is None
    assert "augmentation crop (dc rule)" in PROTOCOLS["dsa"].with_(augment="crop").describe()


def test_a_copy_without_change_keeps_its_name():
    assert TINY.with_(epochs=4) == TINY


def test_json_holds_every_fact():
    protocol = PROTOCOLS["ncfm-published"]
    record = json.loads(json.dumps(protocol.to_json()))
    assert record == protocol.to_json()
    assert (record["name"], record["hash"]) == ("ncfm-published", protocol.hash)
    assert record["selection"] == "test_max"
    assert record["training"]["augment"]["ops"] == ["color", "crop", "flip", "scale", "rotate"]


def test_unknown_names_and_impossible_values():
    with pytest.raises(InputError, match="did you mean 'quick'"):
        find_protocol("quik")
    with pytest.raises(InputError, match=r"epochz is not a field.*'epochs'"):
        TINY.with_(epochz=3)
    with pytest.raises(InputError, match="selection is 'best'"):
        TINY.with_(selection="best")
    with pytest.raises(InputError, match="test_every is 0 with selection 'val'"):
        TINY.with_(selection="val")
    with pytest.raises(InputError, match="test_every is 5 with selection 'last'"):
        TINY.with_(test_every=5)
    with pytest.raises(InputError, match="epochs of protocol"):
        TINY.with_(epochs=0)
    assert find_protocol(TINY) is TINY and find_protocol("dc") is PROTOCOLS["dc"]


def test_lads_step_falls_after_epoch_501_counted_from_0():
    training = PROTOCOLS["lad"].training_for(10, syn_lr=0.03)
    assert (training.epochs, training.batch) == (1001, 128)
    rates = [training.lr_at(epoch) for epoch in (0, 501, 502, 1000)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003])
    assert training.reset_momentum and training.augment.align_corners
    assert PROTOCOLS["lad-published"].training == PROTOCOLS["lad"].training


def test_best_iterates_are_looked_at_with_one_student_each():
    counts = {name: protocol.students(5) for name, protocol in PROTOCOLS.items()}
    assert {name for name, count in counts.items() if count == 1} == {"lad-published"}
    assert set(counts.values()) == {1, 5}


def test_what_is_not_done_is_not_listed_and_the_hash_stays():
    hashes = {"quick-noflip": "dab00f64", "probe": "4a75d303", "probe-noflip": "f225537e"}
    for name, known in hashes.items():
        assert find_protocol(name).hash == known
    noflip = PROTOCOLS["quick-noflip"].to_json()
    augment = noflip["training"]["augment"]
    assert "flip" not in augment and "cutout" not in augment and augment["rotate"] == 15.0
    assert not {"momentum", "milestones", "gamma", "reset_momentum"} & set(noflip["training"])
    assert not {"epochs_by_ipc", "test_every", "held_out", "learned_lr"} & set(noflip)
    full = PROTOCOLS["mtt"].to_json()
    assert full["training"]["augment"]["flip"] == 0.5 and full["learned_lr"] is True
    assert full["training"]["momentum"] == 0.9 and full["training"]["milestones"] == [0.5]
    assert "augment" not in PROTOCOLS["dc"].to_json()["training"]
    views = find_protocol("probe-noflip").to_json()["views"]
    assert set(views) == {"crop_min", "aspect"}
    assert find_protocol("probe").to_json()["views"]["flip"] == 0.5
    assert in_use({"training": {"augment": {"ops": ["crop"], "flip": 0.5}}}) == {
        "training": {"augment": {"ops": ["crop"]}}
    }


def test_heads_on_all_real_images_have_a_protocol_of_their_own():
    probe = find_protocol("probe")
    few, many = probe.full_json(400), probe.full_json(60_000)
    assert few["name"] == "probe-full" and few["training"]["epochs"] == 2500  # 10 000 steps
    assert many["training"]["epochs"] == 100
    assert len({probe.hash, few["hash"], many["hash"]}) == 3
    assert few["description"].startswith(f"probe-full [{few['hash']}]: linear head")
    assert "2500 epochs" in few["description"] and few["labels"] == "hard"


def test_a_prior_is_part_of_name_hash_and_sentence():
    plain, probe = find_protocol("quick"), find_protocol("probe")
    assert find_protocol("quick", "plain") is plain and find_protocol("quick", None) is plain
    changed = find_protocol("quick", "balanced_softmax")
    assert changed.name == "quick-balanced_softmax" and changed.hash != plain.hash
    assert "Ren et al., NeurIPS 2020" in changed.describe() and "prior" not in plain.to_json()
    head = find_protocol("probe", "crt")
    assert head.name == "probe-crt" and head.hash != probe.hash
    assert head.to_json()["prior"] == head.full_json(100)["prior"] == "crt"
    assert "prior" not in probe.facts
    with pytest.raises(InputError, match="prior is 'remix'; use one of plain"):
        find_protocol("probe", "remix")


@pytest.mark.parametrize("changes", [{"label_scale": 8.0}, {"centred": True}], ids=str)
def test_scaled_and_centred_belong_to_squared_error(changes):
    with pytest.raises(InputError, match=r"^loss is 'auto' with label_scale .*; use loss="):
        PROTOCOLS["quick"].with_(**changes)
    changed = PROTOCOLS["frepo"].with_(**changes)
    assert changed.hash != PROTOCOLS["frepo"].hash
