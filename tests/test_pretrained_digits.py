"""The whole way of the pre-trained family on long-tailed digits, with a backbone of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

import potstill
from potstill.app.job import distill
from potstill.app.scoring import evaluate_run
from potstill.evaluation import PROBES, Inheritance
from potstill.experts.heads import Head
from potstill.reports import compare, report
from potstill.run import InputError, Run

EYE = {"backbone": "self:convnet-d2-w16-bn", "backbone_epochs": 100, "flip": 0.0}
SEEN = {"crop_min": 0.5, "noise_mean": 0.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture
def here(place) -> Run:
    return Run(device="cpu", cache=place / "cache", quiet=True)


@pytest.fixture(scope="module")
def digits():
    train, test, _ = potstill.load_pair("digits")
    return train.long_tailed(50), test


PROBE = PROBES["probe-noflip"].with_(epochs=200, stored_views=16, full_steps=500)


def score(syn, digits, here, **more):
    (found,) = potstill.evaluate(
        syn, *digits, network="same", protocol=PROBE, runs=2, run=here, quantized=False, **more
    )
    return found


def test_flows_and_gradients_are_worth_more_than_random_images_and_centroids(digits, here):
    train, _ = digits
    means = {}
    for name, fields in (
        ("sfm", {"steps": 150, "grow_every": 12, **SEEN}),
        ("lgm", {"steps": 150, "grow_every": 12, "balance": "sampling", **SEEN}),
        ("centroids", {}),
    ):
        method = potstill.CATALOGUE[name].budget("quick", **EYE, **fields)
        found = score(method(train, 10, here), digits, here)
        means[name] = found.accuracy["mean"]
        means["random"] = found.random["accuracy"]["mean"]
    assert min(means["sfm"], means["lgm"]) > means["random"] + 5, means
    assert means["sfm"] > means["centroids"], means


@pytest.fixture(scope="module")
def scored(place):
    """(folder, set, its score with its own backbone and with another) of a run with its head."""
    brief = PROBE.with_(epochs=50, full_steps=100, stored_views=4)
    folder, run = place / "run", Run(device="cpu", cache=place / "cache", quiet=True)
    method = potstill.CATALOGUE["sfm"].budget("quick", steps=20, grow_every=5, **EYE, **SEEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("potstill.evaluation.protocol.PROBES", {"probe": brief})
        syn = distill(method, "digits", ipc=3, imbalance_factor=20, out=folder, run=run)
        scores = evaluate_run(
            folder,
            run,
            network=["same", "convnet-d2-w16-in"],
            protocol="probe",
            runs=2,
            inherit=Inheritance(kd=True),
            full=True,
        )
    return folder, syn, *scores


def test_a_run_is_scored_across_backbones_with_an_inherited_classifier(scored, place):
    folder, syn, same, other = scored
    assert same.backbone["same"] and not other.backbone["same"]
    assert same.inherited["same_backbone"] and not other.inherited["same_backbone"]
    assert (same.label_tier, other.inherited["label_tier"]) == ("hard", "inherited")
    classes, dim = 10, syn.provenance["backbone"]["features"]
    sent = 4 * classes * (dim + 1)
    assert other.inherited["head"]["bytes"] == sent
    assert other.inherited["receiver_bytes"] == other.receiver_bytes + sent
    assert other.kd["receiver_bytes"] == other.inherited["receiver_bytes"]
    assert other.kd["sender_backbone"]["bytes"] > 0  # needed for either, and named beside
    assert "random" not in same.inherited and "whole" not in same.inherited
    beside = [other.inherited[name]["accuracy"]["mean"] for name in ("random", "whole")]
    assert beside[1] > max(beside[0], other.inherited["accuracy"]["mean"])  # many images, one map
    head = Head.load(folder / "head.safetensors")
    assert head.backbone == syn.provenance["backbone"]["key"] == same.backbone["key"]
    page = report(folder).read_text()
    assert "With the inherited head" in page and "distilled + inherited head" in page
    assert "random real + inherited head" in page and "ceiling of the map" in page
    page = compare([folder], place / "compare.html").read_text()
    assert "inherited head" in page and "without the images" in page
    assert "inherited from the sender" in (folder / "synthetic" / "README.md").read_text()
    assert str(place) not in (folder / "synthetic" / "provenance.json").read_text()


def test_a_head_that_came_along_is_used_and_never_written_over(scored, here, tmp_path):
    """The artifact and its head at somebody else's, who has other data of the same kind."""
    import shutil

    folder, made = tmp_path / "artifact", scored[0]
    shutil.copytree(made / "synthetic", folder)
    shutil.copy(made / "head.safetensors", folder)
    before = (folder / "head.safetensors").read_bytes()
    how = {"network": ["convnet-d2-w16-in"], "protocol": "probe-noflip", "runs": 1}
    (score,) = evaluate_run(
        folder, here, data="digits", inherit=Inheritance(), baseline=False, quantized=False, **how
    )
    sent = Head.load(made / "head.safetensors")
    assert score.inherited["head"] == {"bytes": sent.nbytes, **sent.facts}
    assert (folder / "head.safetensors").read_bytes() == before
    (folder / "head.safetensors").unlink()
    with pytest.raises(InputError, match="needs the sender's classifier"):
        evaluate_run(folder, here, data="digits", inherit=Inheritance(), **how)
    assert not (folder / "head.safetensors").exists()


def test_what_was_inherited_otherwise_does_not_count_as_asked_for():
    from potstill.evaluation.inheritance import fits

    had = {"head": {"prior": "plain"}, "projector": {"kind": "ridge"}, "same_backbone": False}
    assert fits(None, None, None) and fits(Inheritance(prior="plain"), had, None)
    assert not fits(Inheritance(), had, None)  # another prior
    assert not fits(Inheritance(prior="plain", projector="adam"), had, None)
    assert not fits(Inheritance(prior="plain", kd=True), had, None)
    assert fits(
        Inheritance(prior="plain", projector="adam"),
        had | {"same_backbone": True, "projector": None},
        None,
    )


def test_an_artifact_of_anybody_is_not_believed(digits, here):
    syn = potstill.CATALOGUE["centroids"].budget("quick", **EYE)(digits[0], 1, here)
    for facts in ({"method": "x"}, {"backbone": "x"}, {"method": {"fields": {"backbone": 3}}}):
        syn.provenance.update(facts)
        with pytest.raises(InputError):
            score(syn, digits, here)
    fields = {"backbone": EYE["backbone"], "backbone_epochs": "many"}
    syn.provenance.update({"method": {"fields": fields}, "backbone": {"key": "k"}})
    with pytest.raises(InputError, match="backbone_epochs 'many'"):
        score(syn, digits, here)


def test_what_needs_a_probe_or_a_backbone_says_so(digits, here):
    syn = potstill.CATALOGUE["random"]()(digits[0], 2, here)
    with pytest.raises(InputError, match="no backbone distilled the artifact"):
        potstill.evaluate(syn, *digits, network="same", protocol=PROBE, run=here)
    with pytest.raises(InputError, match="inherited under a probe"):
        potstill.evaluate(syn, *digits, protocol="quick", run=here, inherit=Inheritance())
    with pytest.raises(InputError, match="use one of ridge, adam"):
        Inheritance(projector="rigde")
    with pytest.raises(InputError, match="use one of plain, balanced, class_aware"):
        Inheritance(prior="posthoc")


def test_debiased_heads_are_better_on_the_tail(digits, here):
    from potstill.data import Normalize
    from potstill.experts.features import collect_features
    from potstill.experts.heads import train_head
    from potstill.nets.backbone import open_backbone

    train, test = digits
    draw = here.generator("backbone")
    backbone = open_backbone("convnet-d2-w16-in", train.shape, draw, Normalize.fit(train))
    bank = collect_features(test, backbone, here, bank=True).bank[0]
    tail = [label for label in train.groups["tail"]]
    rows = sum(test.labels == label for label in tail).bool()
    right = {}
    lifted = ("balanced", "logit_adjusted", "post_hoc", "progressive", "crt")
    for prior in ("plain", *lifted):
        head = train_head(train, backbone, here, prior=prior, least_steps=1500)
        assert head.facts["prior"] == prior
        right[prior] = float((head(bank).argmax(1) == test.labels)[rows].float().mean())
    assert min(right[prior] for prior in lifted) > right["plain"]


def test_a_probe_on_all_real_images_reads_the_table(digits, here):
    """The tail of a reference gains; the artifact, with equal classes, stays as it was."""
    train, test = digits
    syn = potstill.CATALOGUE["centroids"].budget("quick", **EYE)(train, 1, here)
    tail = {}
    for prior in ("plain", "balanced_softmax", "post_hoc", "crt"):
        how = PROBE.with_(prior=prior, epochs=20, full_steps=500)
        (found,) = potstill.evaluate(
            syn, train, test, network="same", protocol=how, runs=2, run=here, quantized=False,
            baseline=False, full=True,
        )  # fmt: skip
        whole = found.full if prior == "plain" else found.ceiling
        tail[prior] = whole["groups"]["tail"]["mean"]
        if prior in ("plain", "balanced_softmax"):
            tail.setdefault("artifact", found.accuracy)
            assert found.accuracy == tail["artifact"]
    assert min(tail[prior] for prior in ("balanced_softmax", "post_hoc", "crt")) > tail["plain"]


def test_a_head_of_something_else_is_refused(place, digits, here, tmp_path):
    import torch

    head = Head(torch.ones(10, 4), torch.zeros(10), digits[0].classes, "another", {"label": "x"})
    head.save(tmp_path / "head.safetensors")
    again = Head.load(tmp_path / "head.safetensors")
    assert torch.equal(again.weight, head.weight) and again.classes == head.classes
    syn = potstill.CATALOGUE["centroids"].budget("quick", **EYE)(digits[0], 1, here)
    with pytest.raises(InputError, match="head was trained on backbone 'x'"):
        score(syn, digits, here, inherit=Inheritance(head=head))
    (tmp_path / "head.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="damaged"):
        Head.load(tmp_path / "head.safetensors")
