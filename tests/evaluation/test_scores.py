import json
from dataclasses import replace

import pytest
import torch

from potstill.data import ZCA, ImageSet, Normalize
from potstill.evaluation import bench, references
from potstill.evaluation.examples import mosaic_views
from potstill.evaluation.protocol import PROTOCOLS, Protocol
from potstill.evaluation.record import below, few_test_images, of_ceiling
from potstill.evaluation.scores import Score, evaluate, read_scores, write_scores
from potstill.methods import Mosaic
from potstill.nets import Training
from potstill.run import ArtifactError, InputError, StorageError
from potstill.synthetic import SyntheticSet, list_iterates, load_iterate, save_iterate
from potstill.synthetic.started import kept, started

NETWORK = "convnet-w8"
TINY = Protocol(name="tiny", training=Training(epochs=6, batch=8, optimizer="adamw", lr=1e-2))


@pytest.fixture
def data(make_blobs):
    return make_blobs((30, 12, 5)), make_blobs((10, 10, 10), seed=1)


@pytest.fixture
def syn(data):
    """Two real images per class, not quite on the 8-bit grid."""
    train, _ = data
    rows = torch.cat([train.of_class(label)[:2] for label in range(3)])
    images = (train.batch(rows) + 0.001).clamp(max=1)
    return SyntheticSet(images, train.labels[rows], train.classes, Normalize.fit(train))


@pytest.fixture
def trained(monkeypatch):
    """What students were trained on, in order."""
    seen, original = [], bench.train_students

    def counted(examples, training, protocol, **how):
        seen.append(how["label"].split(" on ")[1])
        return original(examples, training, protocol, **how)

    monkeypatch.setattr(bench, "train_students", counted)
    return seen


WHOLE = ["all real images, plain", "all real images, balanced_softmax"]
ALL = ["the synthetic set", "the synthetic set", "random real images", *WHOLE]


def score(syn, data, run, **more):
    how = dict(network=NETWORK, protocol=TINY, runs=2, run=run) | more
    return evaluate(syn, *data, **how)[0]


def test_a_record_holds_what_the_contract_lists(syn, data, run):
    record = score(syn, data, run, full=True, test_note="a sentence").to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["network"] == "convnet-d2-w8-in"
    assert (record["protocol"]["name"], record["protocol"]["hash"]) == ("tiny", TINY.hash)
    assert record["protocol"]["training"]["epochs"] == 6
    assert (record["label_tier"], record["runs"], record["seed"]) == ("hard", 2, 0)
    assert record["artifact"] == syn.checksum and record["receiver_bytes"] == syn.nbytes
    assert record["classes"] == list(syn.classes) and record["train_counts"] == [30, 12, 5]
    assert record["test"] == {
        "source": "blobs", "images": 30, "smallest": 10, "sentence": "a sentence"
    }  # fmt: skip
    assert [record[key]["images"] for key in ("random", "full", "ceiling")] == [6, 47, 47]
    assert record["mosaic"] is None  # a stored image is one image
    assert list(record["groups"]) == ["head", "medium", "tail"]
    for name in (None, "quantized", "random", "full", "ceiling"):
        part = record[name] if name else record
        assert len(part["accuracy"]["values"]) == (1 if name in ("full", "ceiling") else 2)
        assert len(part["per_class"]["mean"]) == len(part["per_class"]["std"]) == 3
        assert set(part["groups"]["tail"]) == {"mean", "std"}
    assert record["last"] is None and record["epochs"] is None
    assert record["seconds"] > 0 and record["device"] and len(record["date"]) == 10
    assert Score.from_json(json.loads(json.dumps(record))).to_json() == record


def test_numbers_agree_with_each_other(syn, data, run):
    found = score(syn, data, run)
    per_class = found.per_class["mean"]
    assert found.accuracy["mean"] == pytest.approx(sum(per_class) / 3)  # balanced test set
    assert found.groups["tail"]["mean"] == pytest.approx(per_class[2])  # by TRAIN counts
    assert found.accuracy["mean"] > 60  # chance is 33


def test_same_seed_same_score_different_seed_different(syn, data, run):
    how = {"baseline": False, "quantized": False, "protocol": TINY.with_(epochs=2)}
    one, two = (score(syn, data, run, **how).accuracy for _ in range(2))
    assert one == two
    assert score(syn, data, run.with_(seed=1), **how).accuracy != one


def test_eight_bit_view_of_real_images_is_not_trained_twice(syn, data, run, trained):
    exact = replace(syn, images=(syn.images * 255).round() / 255)
    found = score(exact, data, run, baseline=False)
    assert trained == ["the synthetic set"] and found.quantized["accuracy"] == found.accuracy
    trained.clear()
    found = score(syn, data, run, baseline=False)
    assert trained == ["the synthetic set"] * 2
    assert score(exact, data, run, baseline=False).accuracy == found.quantized["accuracy"]


def test_a_view_has_the_budget_of_its_artifact(syn, data, run):
    """The 8-bit view of a tiled set stores four images for one; that buys no other epochs."""
    tiled = replace(syn, decode={"kind": "tiled", "factor": 2, "formation": "single"})
    by_ipc = TINY.with_(epochs_by_ipc=((1, 3), (3, 1)))
    found = score(tiled, data, run, baseline=False, protocol=by_ipc)
    plain = score(tiled, data, run, baseline=False, protocol=TINY.with_(epochs=3))
    assert found.quantized == plain.quantized and found.accuracy == plain.accuracy


def test_references_are_cached_and_the_artifact_is_not(syn, data, run, trained):
    first = score(syn, data, run, full=True)
    assert trained == ALL
    again = score(syn, data, run, full=True)
    assert trained == ALL + ALL[:2]
    for name in ("random", "full", "ceiling"):
        assert getattr(again, name) == getattr(first, name)
    other = replace(syn, images=syn.images.flip(0).contiguous())
    score(other, data, run, full=True)
    assert trained == ALL + ALL[:2] * 2  # references know the artifact by its counts only


@pytest.mark.parametrize(
    "change",
    ["runs", "seed", "protocol", "network", "counts", "transform", "train", "test"],
)
def test_the_cache_knows_what_matters(change, syn, data, run, trained, make_blobs):
    how = {"quantized": False, "protocol": TINY.with_(epochs=1)}
    score(syn, data, run, **how)
    if change == "runs":
        how["runs"] = 1
    elif change == "seed":
        run = run.with_(seed=1)
    elif change == "protocol":
        how["protocol"] = TINY.with_(epochs=1, lr=0.02)
    elif change == "network":
        how["network"] = "mlp-w8"
    elif change == "counts":
        syn = replace(syn, images=syn.images[1:], labels=syn.labels[1:])
    elif change == "transform":
        syn = replace(syn, transform=Normalize(torch.tensor([0.3]), torch.tensor([0.3])))
    elif change == "train":
        data = (data[0].select(torch.arange(1, 47)), data[1])
    else:
        data = (data[0], data[1].select(torch.arange(1, 30)))
    score(syn, data, run, **how)
    assert trained.count("random real images") == 2


def test_a_damaged_cache_is_measured_again(syn, data, run, trained):
    first = score(syn, data, run, quantized=False)
    (path,) = (run.cache / "scores").glob("*/result.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    assert score(syn, data, run, quantized=False).random == first.random
    assert trained.count("random real images") == 2


def test_a_changed_number_in_the_cache_is_not_believed(syn, data, run, trained, caplog):
    first = score(syn, data, run, quantized=False)
    (path,) = (run.cache / "scores").glob("*/result.safetensors")
    mean = f"{first.random['accuracy']['mean']}".encode()
    other = mean[:-1] + (b"1" if mean[-1:] != b"1" else b"2")
    assert mean in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(mean, other))
    assert score(syn, data, run, quantized=False).random == first.random
    assert trained.count("random real images") == 2
    assert f"{path} is damaged" in caplog.text and "measuring again" in caplog.text


def test_a_cache_that_cannot_be_written_costs_no_score(syn, data, run, monkeypatch):
    def full_disk(*_):
        raise StorageError("disk full")

    monkeypatch.setattr("potstill.run.cache.save_state", full_disk)
    assert score(syn, data, run, quantized=False).random["accuracy"]["mean"] > 0


BRIEF = {"baseline": False, "quantized": False}


def test_all_real_images_have_protocols_of_their_own(syn, data, run, trained, monkeypatch):
    found = score(syn, data, run, full=2, **BRIEF)
    assert trained[1:] == WHOLE
    full, ceiling = found.full["protocol"], found.ceiling["protocol"]
    assert (full["name"], ceiling["name"]) == ("full-noflip", "ceiling-noflip")
    assert "prior" not in full and ceiling["prior"] == "balanced_softmax"
    assert f"ceiling-noflip [{ceiling['hash']}]: 2 epochs" in ceiling["description"]
    assert full["hash"] != ceiling["hash"] and full["training"] == ceiling["training"]
    assert len(found.ceiling["accuracy"]["values"]) == 2
    for name, protocol in (("full", PROTOCOLS["quick"]), ("ceiling", PROTOCOLS["lad"])):
        monkeypatch.undo()  # as in earnest
        how = references.reference(name, protocol, 11_203)
        assert (how.name, how.training.epochs, how.selection) == (name, 120, "last")
        assert how.prior == {"full": "plain"}.get(name, "balanced_softmax") and not how.learned_lr
        assert references.reference(name, protocol, 47).training.epochs == 2500  # 5000 steps


def test_a_ceiling_belongs_to_data_network_and_test_set(syn, data, run, trained):
    """Neither the students' protocol nor the artifact's transform make another one of it."""
    first = score(syn, data, run, full=True, **BRIEF)
    white = replace(syn, transform=ZCA.fit(data[0]))
    other = TINY.with_(epochs=1, selection="val", test_every=1, held_out=2)
    again = score(white, data, run, full=True, protocol=other, **BRIEF)
    assert (again.full, again.ceiling) == (first.full, first.ceiling)
    assert trained == ["the synthetic set", *WHOLE, "the synthetic set"]
    mirrored = score(syn, data, run, full=True, protocol=TINY.with_(augment="flip"), **BRIEF)
    assert mirrored.ceiling["protocol"]["name"] == "ceiling" and trained[-2:] == WHOLE
    named = score(syn, data, run, full=True, protocol=TINY.with_(prior="focal"), **BRIEF)
    assert named.full == first.full and named.ceiling["protocol"]["prior"] == "focal"


def test_classes_of_one_size_have_one_reference(syn, data, run, trained, make_blobs):
    even = make_blobs((6, 6, 6))
    found = score(syn, (even, data[1]), run, full=True, **BRIEF)
    assert found.ceiling == found.full and trained == ["the synthetic set", WHOLE[0]]


def test_percent_of_the_ceiling(syn, data, run, tmp_path):
    how = BRIEF | {"protocol": TINY.with_(epochs=1), "runs": 1}
    whole = score(syn, data, run, full=True, **how)
    share = 100 * whole.accuracy["mean"] / whole.ceiling["accuracy"]["mean"]
    assert whole.to_json()["of_ceiling"] == of_ceiling(whole.to_json()) == share
    assert of_ceiling({"accuracy": {"mean": 40.0}}, {"accuracy": {"mean": 80.0}}) == 50
    assert of_ceiling({"accuracy": {"mean": 40.0}}) is None
    assert of_ceiling({"accuracy": {"mean": 0.0}}, {"accuracy": {"mean": 0.0}}) is None
    alone = score(syn, data, run, **how)
    assert alone.to_json()["of_ceiling"] is None
    for one in (whole, alone):  # the second takes the ceiling over from the first
        write_scores(tmp_path, [one])
        (kept,) = json.loads((tmp_path / "scores.json").read_text())["scores"]
        assert kept["of_ceiling"] == share
    assert [found.ceiling for found in read_scores(tmp_path)] == [whole.ceiling]


TILED = {"kind": "tiled", "factor": 2, "formation": "single"}


def test_mosaics_of_equal_storage_stand_beside_a_tiled_set(syn, data, run, trained):
    how = {"quantized": False, "protocol": TINY.with_(epochs=2)}
    tiled = replace(syn, decode=TILED)
    found = score(tiled, data, run, **how)
    assert trained == [ALL[0], ALL[2], "random real mosaics"]
    assert (found.random["images"], found.mosaic["images"], found.mosaic["views"]) == (6, 21, 4)
    made = Mosaic(factor=2)(data[0], 2, run)  # the method with the same seed
    assert score(made, data, run, **how).accuracy == found.mosaic["accuracy"]
    assert score(tiled, data, run, **how).mosaic == found.mosaic
    assert trained.count("random real mosaics") == 1
    assert score(replace(syn, decode=TILED | {"factor": 3}), data, run, **how).mosaic["views"] == 9
    assert score(tiled, data, run, baseline=False, **how).mosaic is None


def test_mosaics_follow_uneven_counts(syn, data, run, caplog):
    uneven = replace(syn, images=syn.images[:5], labels=syn.labels[:5], decode=TILED)
    found = score(uneven, data, run, quantized=False, protocol=TINY.with_(epochs=1))
    assert found.mosaic["images"] == 8 + 8 + 4
    make = replace(uneven, images=syn.images.repeat(3, 1, 1, 1), labels=torch.arange(18) // 6)
    score(make, data, run, quantized=False, protocol=TINY.with_(epochs=1))
    assert not caplog.records  # that a class repeats its 5 images is no news to a reader of scores
    images, labels = mosaic_views(data[0], (2, 0, 1), run, factor=2)
    assert images.shape == (12, 1, 8, 8) and labels.tolist() == [0] * 8 + [2] * 4


def test_classes_worse_than_a_reference_are_found():
    record = {
        "per_class": {"mean": [90.0, 50.0, None]},
        "random": {"per_class": {"mean": [85.0, 52.5, 10.0]}},
        "mosaic": {"per_class": {"mean": [90.0]}},
    }
    assert below(record, "random") == {1: 2.5}
    assert below(record, "mosaic") == below(record, "full") == {}


@pytest.mark.parametrize(
    ("test", "few"),
    [
        ({"images": 30, "smallest": 3}, 3),
        ({"images": 300, "smallest": 10}, None),
        ({"images": 27}, 9),  # older records do not tell the smallest class
        ({"images": 30}, None),
        ({}, None),
    ],
)
def test_few_test_images_are_known(test, few):
    assert few_test_images({"test": test, "classes": ["a", "b", "c"]}) == few


def test_a_fold_stands_in_the_record(syn, data, run):
    how = {"baseline": False, "quantized": False, "protocol": TINY.with_(epochs=1)}
    found = score(syn, data[0].fold(1, 5), run, **how)
    assert found.test["fold"] == "1/5" and found.test["smallest"] == 1


def test_test_max_is_labelled_and_keeps_last_beside_it(syn, data, run):
    how = {"baseline": True, "quantized": False}
    looks = score(syn, data, run, protocol=TINY.with_(selection="test_max", test_every=1), **how)
    plain = score(syn, data, run, **how)
    assert looks.protocol["selection"] == "test_max"
    assert "TEST" in looks.protocol["description"] and "TEST" not in plain.protocol["description"]
    assert looks.last == plain.accuracy
    assert looks.accuracy["mean"] >= looks.last["mean"] and len(looks.epochs) == 2
    assert looks.random["last"] == plain.random["accuracy"]


def test_val_keeps_the_held_out_images_from_the_references(syn, data, run, monkeypatch):
    sizes = []
    for name in ("random_examples", "real_examples"):
        original = getattr(bench, name)

        def recorded(real, *rest, original=original):
            sizes.append(len(real))
            return original(real, *rest)

        monkeypatch.setattr(bench, name, recorded)
    val = TINY.with_(selection="val", test_every=2, held_out=2)
    found = score(syn, data, run, protocol=val, full=True)
    assert sorted(sizes) == [47 - 3 * 2, 47, 47]  # nothing is chosen for all real images
    assert found.train_counts == [30, 12, 5] and found.protocol["held_out"] == 2
    assert found.last["values"] == score(syn, data, run).accuracy["values"]


def test_starved_artifacts(syn, data, run):
    starved = replace(syn, images=syn.images[:5], labels=syn.labels[:5])
    assert starved.counts == (2, 2, 1)
    assert score(starved, data, run).random["accuracy"]["mean"] > 40


def test_soft_labels_decide_and_are_named(syn, data, run):
    swapped = torch.eye(3)[torch.tensor([1, 0, 2])[syn.labels]]
    found = score(replace(syn, soft_labels=swapped), data, run, baseline=False, quantized=False)
    assert found.label_tier == "static" and found.receiver_bytes == syn.nbytes + swapped.nbytes
    assert max(found.per_class["mean"][:2]) < 40
    hard = score(
        replace(syn, soft_labels=swapped), data, run, baseline=False, quantized=False,
        protocol=TINY.with_(labels="hard"),
    )  # fmt: skip
    assert hard.label_tier == "hard" and hard.receiver_bytes == syn.nbytes
    assert hard.accuracy == score(syn, data, run, baseline=False, quantized=False).accuracy


def test_a_saved_artifact_scores_as_in_memory(syn, data, run, tmp_path):
    how = {"baseline": False, "quantized": False}
    folder = syn.save(tmp_path / "artifact")
    assert score(folder, data, run, **how).accuracy == score(syn, data, run, **how).accuracy


def test_several_networks_give_several_scores(syn, data, run):
    how = dict(protocol=TINY, runs=1, run=run, baseline=False, quantized=False)
    scores = evaluate(syn, *data, network=["convnet-w8", "mlp-w8"], **how)
    assert [s.network for s in scores] == ["convnet-d2-w8-in", "mlp-w8"]


def test_scores_file_merges_and_replaces(syn, data, run, tmp_path):
    how = {"baseline": False, "quantized": False, "runs": 1}
    first = score(syn, data, run, **how)
    other = score(syn, data, run, protocol=TINY.with_(lr=0.02), **how)
    assert read_scores(tmp_path) == []
    write_scores(tmp_path, [first])
    write_scores(tmp_path, [other])
    assert read_scores(tmp_path) == [first, other]
    newer = replace(first, date="2999-01-01")
    path = write_scores(tmp_path, [newer])
    assert read_scores(tmp_path) == [other, newer]
    for key in ("runs", "seed"):
        write_scores(tmp_path, [replace(first, **{key: 7})])
    assert len(json.loads(path.read_text())["scores"]) == 4


def test_damaged_score_files_are_named(syn, data, run, tmp_path):
    found = score(syn, data, run, baseline=False, quantized=False)
    (tmp_path / "scores.json").write_text('{"scores": [')
    for act in (lambda: read_scores(tmp_path), lambda: write_scores(tmp_path, [found])):
        with pytest.raises(ArtifactError, match=r"scores\.json is damaged"):
            act()
    assert (tmp_path / "scores.json").read_text() == '{"scores": ['
    with pytest.raises(ArtifactError, match="unknown field 'extra'"):
        Score.from_json(found.to_json() | {"extra": 1})
    with pytest.raises(ArtifactError, match="damaged"):
        Score.from_json({"network": "convnet"})


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("accuracy.mean", "93.4", 'accuracy.mean is "93.4", not a number'),
        ("accuracy.mean", None, "accuracy.mean is null, not a number"),
        ("accuracy.mean", True, "accuracy.mean is true, not a number"),
        ("accuracy.mean", float("nan"), "accuracy.mean is NaN, not a number"),
        ("accuracy.std", [], r"accuracy.std is \[\], not a number"),
        ("accuracy", {"std": 1.0}, "accuracy lacks mean"),
        ("accuracy", None, "accuracy is null, not a table"),
        ("accuracy.values.1", "x", 'accuracy.values.1 is "x", not a number'),
        ("per_class.mean.0", {}, "per_class.mean.0 is {}, not a number"),
        ("groups.tail", 3, "groups.tail is 3, not a table"),
        ("random", 3, "random is 3, not a table"),
        ("random.accuracy.mean", "high", 'random.accuracy.mean is "high", not a number'),
        ("protocol", "quick", 'protocol is "quick", not a table'),
        ("test.images", 1.5, "test.images is 1.5, not a whole number"),
        ("runs", "5", 'runs is "5", not a whole number'),
        ("classes", "abc", 'classes is "abc", not a list'),
        ("classes.0", 7, "classes.0 is 7, not a text"),
        ("train_counts", None, "train_counts is null, not a list"),
        ("seconds", "long", 'seconds is "long", not a number'),
    ],
)
def test_wrong_types_are_one_sentence_that_names_the_file(
    place, value, said, syn, data, run, tmp_path
):
    how = {"quantized": False, "protocol": TINY.with_(epochs=1)}
    record = json.loads(json.dumps(score(syn, data, run, **how).to_json()))
    *way, last = place.split(".")
    spot = record
    for step in way:
        spot = spot[step]
    spot[int(last) if isinstance(spot, list) else last] = value
    (tmp_path / "scores.json").write_text(json.dumps({"scores": [record]}))
    with pytest.raises(ArtifactError, match=rf"scores\.json: score record is damaged \({said}"):
        read_scores(tmp_path)


def renamed(data: ImageSet, *names):
    return replace(data, classes=names)


def test_errors_name_what_does_not_fit(syn, data, run, make_blobs, trained):
    train, test = data
    cases = {
        "runs is 0": dict(runs=0),
        "class 1 is 'dog' in test and 'class 1' in the artifact": dict(
            data=(train, renamed(test, "class 0", "dog", "cat"))
        ),
        "train has 2 classes and the artifact 3": dict(data=(make_blobs((9, 9)), test)),
        r"test has images of shape \(3, 8, 8\)": dict(
            data=(train, make_blobs((5, 5, 5), channels=3))
        ),
        r"train has images of shape \(1, 16, 16\)": dict(
            data=(make_blobs((5, 5, 5), size=16), test)
        ),
        "protocol is 'dcc'; did you mean 'dc'": dict(protocol="dcc"),
        "network is 'konvnet'": dict(network=[NETWORK, "konvnet"]),
        "network is 'convnet-d5-w8-in', whose maps": dict(network=[NETWORK, "convnet-d5-w8"]),
        "labels is 'soft' but": dict(protocol=TINY.with_(labels="soft")),
    }
    for message, change in cases.items():
        with pytest.raises(InputError, match=message):
            score(syn, change.pop("data", data), run, **change)
    assert not trained  # all of it before the first student


def test_another_training_set_than_the_artifacts_is_warned_of(syn, data, run, caplog):
    how = {"baseline": False, "quantized": False, "protocol": TINY.with_(epochs=1)}
    made = replace(syn, provenance={"data": {"checksum": data[0].checksum}})
    score(made, data, run, **how)
    assert not caplog.records
    score(made, (data[0].select(torch.arange(1, 47)), data[1]), run, **how)
    assert "not the set the artifact was made from" in caplog.text


def test_scores_on_other_data_stand_beside_each_other(syn, data, run, tmp_path):
    how = {"baseline": False, "quantized": False, "runs": 1, "protocol": TINY.with_(epochs=1)}
    train, test = data
    first = score(syn, data, run, **how)
    assert (first.test_checksum, first.train_checksum) == (test.checksum, train.checksum)
    other = score(syn, (train, test.select(torch.arange(1, 30))), run, **how)
    cut = score(syn, (train.select(torch.arange(1, 47)), test), run, **how)
    for found in (first, other, cut):
        write_scores(tmp_path, [found])
    assert read_scores(tmp_path) == [first, other, cut]


def test_records_of_older_versions_have_no_checksums(syn, data, run):
    record = score(syn, data, run, baseline=False, quantized=False, runs=1).to_json()
    del record["test_checksum"], record["train_checksum"]
    old = Score.from_json(record)
    assert old.test_checksum == old.train_checksum == ""


def test_what_is_not_measured_again_is_kept(syn, data, run, tmp_path):
    how = {"runs": 1, "protocol": TINY.with_(epochs=1)}
    whole = score(syn, data, run, full=True, **how)
    write_scores(tmp_path, [whole])
    again = score(syn, data, run, baseline=False, quantized=False, **how)
    assert again.full is again.random is again.quantized is None
    write_scores(tmp_path, [again])
    (kept,) = read_scores(tmp_path)
    for name in ("full", "ceiling", "random", "quantized"):
        assert getattr(kept, name) == getattr(whole, name)
    assert kept.seconds == again.seconds


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"status": "running"}, "holds an unfinished run"),
        ({"status": "finished", "artifact": "0" * 16}, "that its run did not make"),
    ],
)
def test_the_artifact_before_an_unfinished_run_is_not_scored(
    syn, data, run, tmp_path, record, said, trained, caplog
):
    syn.save(tmp_path / "run" / "synthetic")
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"job": {"data": {}}}))
    with pytest.raises(InputError, match=said):
        score(tmp_path / "run", data, run)
    assert not trained
    assert ("the newer one is not finished" in caplog.text) == (record["status"] == "running")


def test_one_student_has_no_spread(syn, data, run):
    found = score(syn, data, run, baseline=False, quantized=False, runs=1)
    assert found.accuracy["std"] is None and found.groups["tail"]["std"] is None
    assert found.per_class["std"] == [None] * 3


LOOKED = replace(TINY, name="tiny-published", selection="test_max_iterates")


def noise(syn, seed):
    draw = torch.Generator().manual_seed(seed)
    return replace(syn, images=torch.rand(syn.images.shape, generator=draw))


def test_best_iterate_is_found_and_told_apart(syn, data, run, tmp_path, trained):
    save_iterate(tmp_path, 20, syn.images)
    save_iterate(tmp_path, 5, noise(syn, 0).images)
    files = list_iterates(tmp_path)
    assert [path.stem for path in files] == ["step-000005", "step-000020"]
    assert torch.equal(load_iterate(files[1], syn).images, syn.images)
    found = score(noise(syn, 1), data, run, protocol=LOOKED, iterates=files)
    assert found.iterates["looks"] == 3 and set(found.iterates["accuracies"]) == {"5", "20", "last"}
    assert found.iterates["best"] == 20
    assert found.accuracy["mean"] == max(found.iterates["accuracies"].values())
    assert found.runs == 1 and found.quantized is None and found.last is None
    assert trained.count("the synthetic set") == 3
    assert LOOKED.hash != TINY.hash and "BEST TEST ACCURACY" in LOOKED.describe()
    again = Score.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found


def test_an_iterate_that_is_the_artifact_is_looked_at_once(syn, data, run, tmp_path, trained):
    save_iterate(tmp_path, 0, noise(syn, 0).images)
    save_iterate(tmp_path, 20, syn.images)
    found = score(syn, data, run, protocol=LOOKED, iterates=list_iterates(tmp_path))
    assert found.iterates["looks"] == 2 and set(found.iterates["accuracies"]) == {"0", "last"}
    assert trained.count("the synthetic set") == 2 and found.iterates["best"] is None


def test_a_look_does_not_depend_on_the_others(syn, data, run, tmp_path):
    for step in (5, 10):
        save_iterate(tmp_path, step, noise(syn, step).images)
    files = list_iterates(tmp_path)
    two = score(syn, data, run, protocol=LOOKED, iterates=files, baseline=False).iterates
    one = score(syn, data, run, protocol=LOOKED, iterates=files[1:], baseline=False).iterates
    assert one["accuracies"] == {k: two["accuracies"][k] for k in ("10", "last")}


def test_real_images_have_one_look_under_best_iterates(syn, data, run, tmp_path, trained):
    """And are scored, and cached, as by the protocol without them."""
    save_iterate(tmp_path, 5, noise(syn, 0).images)
    files = list_iterates(tmp_path)
    looked = score(syn, data, run, protocol=LOOKED, iterates=files, full=True)
    plain = score(syn, data, run, full=True, quantized=False)
    assert looked.random["protocol"] == TINY.to_json() and "protocol" not in plain.random
    assert looked.random == {**plain.random, "protocol": TINY.to_json()}
    assert (looked.full, looked.ceiling) == (plain.full, plain.ceiling)
    assert trained.count("random real images") == trained.count(WHOLE[0]) == 1
    published = PROTOCOLS["lad-published"].reference
    assert (published.name, published.hash) == ("lad", PROTOCOLS["lad"].hash)
    assert all(p.reference is p for n, p in PROTOCOLS.items() if n != "lad-published")


def test_a_start_has_one_look_under_best_iterates(syn, data, run, tmp_path):
    """Looks at the test set while it trains would be its own choice by it."""
    save_iterate(tmp_path, 5, noise(syn, 0).images)
    begun = started(syn, kept({"images": noise(syn, 2).images}))
    looked = score(begun, data, run, protocol=LOOKED, iterates=list_iterates(tmp_path))
    plain = score(begun, data, run.with_(cache=tmp_path / "other"), quantized=False)
    assert looked.start == {**plain.start, "protocol": TINY.to_json()}


def test_iterates_that_are_missing_or_foreign_are_refused(syn, data, run, tmp_path, trained):
    with pytest.raises(InputError, match="no iterates were kept; distil with --iterate-every"):
        score(syn, data, run, protocol=LOOKED)
    save_iterate(tmp_path, 3, noise(syn, 0).images)
    soft = torch.full((6, 3), 1 / 3)
    wrong = {
        r"its images are \(4, 1, 8, 8\)": (syn.images[:4], None, None),
        "only one of the two has soft_labels": (syn.images, soft, None),
        "only one of the two has syn_lr": (syn.images, None, 0.01),
        "NaN": (syn.images * float("nan"), None, None),
    }
    for said, parts in wrong.items():
        save_iterate(tmp_path, 5, *parts)
        with pytest.raises(ArtifactError, match=f"does not belong to the artifact .*{said}"):
            score(syn, data, run, protocol=LOOKED, iterates=list_iterates(tmp_path))
    list_iterates(tmp_path)[1].write_bytes(b"half")
    with pytest.raises(ArtifactError, match="damaged"):
        score(syn, data, run, protocol=LOOKED, iterates=list_iterates(tmp_path))
    assert not trained  # all are read before the first is scored


def test_soft_labels_and_step_size_of_an_iterate_come_back(syn, tmp_path):
    soft = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    last = replace(syn, soft_labels=soft.flip(0), syn_lr=0.02)
    path = save_iterate(tmp_path, 500, syn.images, soft, 0.125)
    (tmp_path / "iterates" / "notes.txt").write_text("not ours")
    (tmp_path / "iterates" / "step-one.safetensors").write_bytes(b"")
    assert list_iterates(tmp_path) == [path] and path.name == "step-000500.safetensors"
    found = load_iterate(path, last)
    assert torch.equal(found.soft_labels, soft) and found.syn_lr == 0.125
    assert found.classes == last.classes and found.label_tier == "static"
    assert list_iterates(tmp_path / "nowhere") == []
