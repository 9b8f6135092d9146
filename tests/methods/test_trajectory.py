"""What the trajectory methods add to the contract: draws, phases, labels, gates, averages."""

from __future__ import annotations

import pytest
import torch

from potstill.canvas import Pixels, start_canvas
from potstill.canvas.tiled import mosaic
from potstill.losses import cross_entropy
from potstill.match.student_steps import draw_steps
from potstill.methods import DATM, FTD, LAD, MTT, TESLA
from potstill.methods.trajectory.initialization import Initialization
from potstill.methods.trajectory.students import pick
from potstill.methods.trajectory.trajectory_matching import Trajectory, TrajectoryObjective
from potstill.networks import Experts
from potstill.networks.parts import fit_transform
from potstill.run import InputError
from potstill.synthetic import SyntheticSet
from potstill.synthetic.iterates import list_iterates

TINY = {
    "steps": 4, "network": "convnet-d2-w8-in", "experts": 2, "expert_epochs": 4, "expert_batch": 16,
    "student_steps": 3, "span": 1, "start_max": 2, "preprocess": "normalize", "start_grow": 0,
}  # fmt: skip
LAD_TINY = TINY | {"classifier_epochs": 2, "classifier_steps": 3}


def made(kind, fields=TINY, **more):
    return kind.budget("paper", **fields | more)


def opened(method, real, run, ipc=2):
    objective, _ = method.begin(real, ipc, run)
    return objective


def test_start_epochs_stay_below_a_bound_that_grows():
    grown = made(DATM, {}, start_min=2, start_now=5, start_max=15, start_grow=100).trajectory
    assert [grown.bound(step) for step in (0, 50, 99, 100, 5000)] == [5, 10, 14, 15, 15]
    never_empty = Trajectory(start_min=0, start_now=0, start_max=20, start_grow=1000)
    assert never_empty.bound(0) == 1  # the published code crashes here
    assert Trajectory(start_max=20).bound(0) == 20


def test_every_expert_has_its_turn_in_an_order_drawn_anew(run):
    rounds = [[pick(run, "expert", 5 * r + k, 5) for k in range(5)] for r in range(6)]
    assert all(sorted(order) == list(range(5)) for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1


def test_student_batches_are_chunks_of_permutations(run):
    images = torch.zeros(7, 1, 4, 4)

    def generator(kind, index):
        return run.generator(kind, index)

    steps = draw_steps(generator, images, 5, batch=3)
    sizes = [len(step.rows) for step in steps]
    assert sizes == [3, 3, 1, 3, 3]
    assert sorted(torch.cat([step.rows for step in steps[:3]]).tolist()) == list(range(7))
    assert not torch.equal(steps[0].rows, steps[3].rows) or not torch.equal(
        steps[1].rows, steps[4].rows
    )
    assert all(step.rows is None for step in draw_steps(generator, images, 2, batch=7))


def test_student_step_size_is_learned_and_stays_positive(make_blobs, run):
    real = make_blobs((20, 8, 4))
    syn = made(MTT, lr_syn_lr=10.0)(real, 2, run)  # absurdly large: a plain step would cross 0
    assert syn.syn_lr > 0 and syn.syn_lr != pytest.approx(0.01)
    assert syn.soft_labels is None


@pytest.mark.parametrize("method", [made(DATM), made(LAD, LAD_TINY)])
def test_soft_labels_travel_with_their_images(method, make_blobs, run, tmp_path):
    from datasets import load_dataset

    syn = method(make_blobs((20, 8, 4)), 2, run)
    assert syn.soft_labels.shape == (6, 3) and syn.label_tier == "static"
    assert torch.allclose(syn.soft_labels.sum(1), torch.ones(6), atol=1e-5)
    syn.save(tmp_path / "artifact")
    again = SyntheticSet.load(tmp_path / "artifact")
    assert torch.equal(again.soft_labels, syn.soft_labels) and again.syn_lr == syn.syn_lr
    rows = load_dataset(
        str(tmp_path / "artifact"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert torch.allclose(torch.tensor(rows["soft_label"][:]), syn.soft_labels)


def test_learned_labels_move_and_hard_ones_do_not(make_blobs, run):
    real = make_blobs((20, 8, 4))
    objective = opened(made(DATM, threshold=0.0), real, run)
    for term in objective.terms(0, objective.canvas, 3):
        term.values.sum().backward()
    leaves = objective.leaves()
    assert leaves["logits"].grad.abs().sum() > 0 and leaves["raw_lr"].grad.abs() > 0
    assert set(opened(made(MTT), real, run).leaves()) == {"raw_lr"}


def test_a_distance_above_the_threshold_moves_nothing(make_blobs, run):
    real = make_blobs((20, 8, 4))
    gated = made(DATM, threshold=1e-9)(real, 2, run)
    start = made(DATM, steps=0)(real, 2, run)
    assert torch.equal(gated.images, start.images) and gated.syn_lr == start.syn_lr


def test_ftd_stores_the_average_of_its_images(make_blobs, run, tmp_path):
    real, seen = make_blobs((20, 8, 4)), []
    method = made(FTD, ema=0.5, steps=3)
    watching = run.with_(
        watch=lambda step, record, canvas: seen.append(canvas.images.detach().clone())
    )
    syn = method(real, 2, watching)
    start = opened(made(FTD, ema=0.5, steps=0), real, run)
    average, transform = start.canvas.images.detach(), start.networks.transform
    for images in seen:
        average = 0.5 * average + 0.5 * images
    expected = transform.inverse(average)
    assert torch.allclose(syn.images, expected, atol=1e-5)
    assert not torch.allclose(syn.images, transform.inverse(seen[-1]), atol=1e-3)


def test_tesla_teacher_labels_are_the_targets_opinion(make_blobs, run):
    real = make_blobs((20, 8, 4))
    objective = opened(made(TESLA, labels="teacher"), real, run)
    before = objective.leaves()["logits"].clone()
    list(objective.terms(0, objective.canvas, 3))
    member, epoch = objective.draw_expert(0)
    seen = objective.canvas.seen(objective.networks.transform)
    expected = objective.students.forward(objective.expert(member, epoch + 1), seen)
    logits = objective.leaves()["logits"]
    assert torch.allclose(logits, expected.detach(), atol=1e-6)
    assert not logits.requires_grad and not torch.allclose(logits, before)


def test_lad_matches_both_phases_with_their_weights(make_blobs, run):
    real = make_blobs((20, 8, 4))
    values = {}
    for weights in ((1.0, 1.0), (0.1, 2.0)):
        own = {"representation_weight": weights[0], "classifier_weight": weights[1]}
        objective = opened(made(LAD, LAD_TINY, **own), real, run)
        terms = objective.terms(0, objective.canvas, 3)
        values[weights] = {t.name: float(t.values.detach()) for t in terms}
    one, other = values.values()
    assert other["representation"] == pytest.approx(0.1 * one["representation"], rel=1e-4)
    assert other["classifier"] == pytest.approx(2 * one["classifier"], rel=1e-4)


@pytest.mark.parametrize(
    ("matching", "early", "late"),
    [
        ("joint", {"representation", "classifier"}, {"representation", "classifier"}),
        ("sequential", {"representation"}, {"classifier"}),
        ("backbone", {"representation"}, {"representation"}),
        ("direct", {"classifier"}, {"classifier"}),
        ("oversample", {"trajectory"}, {"trajectory"}),
        ("plain", {"trajectory"}, {"trajectory"}),
    ],
)
def test_lad_matching_variants(matching, early, late, make_blobs, run):
    method = made(LAD, LAD_TINY, matching=matching)
    objective = opened(method, make_blobs((20, 8, 4)), run)
    assert {term.name for term in objective.terms(0, objective.canvas, 3)} == early
    assert {term.name for term in objective.terms(3, objective.canvas, 3)} == late
    assert objective.networks.trajectories.members == 2
    assert (objective.networks.classifiers is None) == (matching in ("oversample", "plain"))


def test_lad_student_loss_is_dam_and_without_it_cross_entropy(make_blobs, run):
    real = make_blobs((20, 8, 4))
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(5, 3, generator=torch.Generator().manual_seed(1)).softmax(1)
    losses = {}
    for adjustment in ("weighted", "logit", "both", "none"):
        objective = opened(made(LAD, LAD_TINY, adjustment=adjustment), real, run)
        losses[adjustment] = objective.loss(logits, targets)
    w, s = torch.tensor(real.counts) / sum(real.counts), torch.tensor(real.counts).log()
    plain = logits.log_softmax(1)
    moved = (logits - s).log_softmax(1)
    assert torch.allclose(losses["none"], cross_entropy(logits, targets))
    assert torch.allclose(losses["weighted"], -(w * targets * plain).sum(1), atol=1e-6)
    assert torch.allclose(losses["logit"], -(targets * moved).sum(1), atol=1e-6)
    assert torch.allclose(losses["both"], -(w * targets * moved).sum(1), atol=1e-6)


def test_lad_provenance_tells_of_its_experts(make_blobs, run):
    syn = made(LAD, LAD_TINY)(make_blobs((20, 8, 4)), 2, run)
    norms = syn.provenance["experts"]["classifier_norms"]
    assert {len(row) for row in norms.values()} == {3} and set(norms) == {
        "representation",
        "classifier",
    }
    assert all(value > 0 for row in norms.values() for value in row)


def test_long_tailed_ipc_gives_uneven_sets(make_blobs, run):
    syn = made(LAD, LAD_TINY, ipc_profile="long_tailed")(make_blobs((40, 10, 4)), 4, run)
    assert sum(syn.counts) == 12 and syn.counts[0] > syn.counts[1] > syn.counts[2] >= 1


def test_the_last_student_ends_where_its_expert_does(make_blobs, run):
    method = made(MTT, expert_epochs=3, start_max=3, start_min=2)
    assert method.trajectory.snapshots() == {2, 3}
    opened(method, make_blobs((20, 8, 4)), run).expert(1, 3)


def test_on_more_gpus_students_take_a_share_of_the_step_that_receivers_get(make_blobs, run):
    real = make_blobs((20, 8, 4))
    one = made(LAD, LAD_TINY, syn_lr=0.01, lr_syn_lr=1e-4)(real, 2, run)
    four = made(LAD, LAD_TINY, syn_lr=0.04, lr_syn_lr=16e-4, gpus=4)(real, 2, run)
    assert torch.allclose(four.images, one.images, atol=1e-5)
    assert torch.allclose(four.soft_labels, one.soft_labels, atol=1e-5)
    assert one.syn_lr != pytest.approx(0.01, rel=1e-4)
    assert four.syn_lr == pytest.approx(4 * one.syn_lr, rel=1e-4)


def test_the_classifier_phase_may_have_its_own_step_size_and_epoch_length(make_blobs, run):
    real = make_blobs((20, 8, 4))
    own = made(LAD, LAD_TINY, classifier_syn_lr=0.3, classifier_images=16)
    objective = opened(own, real, run)
    assert set(objective.leaves()) == {"logits", "raw_lr", "raw_classifier_lr"}
    assert float(objective.classifier_step().detach()) == pytest.approx(0.3)
    representation, classifier = objective.terms(0, objective.canvas, 3)
    representation.values.sum().backward()
    assert objective.leaves()["raw_classifier_lr"].grad is None
    classifier.values.sum().backward()
    assert objective.leaves()["raw_classifier_lr"].grad.abs() > 0
    assert own(real, 2, run).syn_lr == pytest.approx(0.01, rel=0.1)  # receivers get the other's
    assert own.classifiers.training(own.networks.training()).epoch_images == 16
    shared = opened(made(LAD, LAD_TINY), real, run)
    assert shared.classifier_step is shared.step_size
    assert "raw_classifier_lr" not in shared.leaves()


def constant(real, label):
    """Weights of a network of TINY that says ``label`` of every image."""
    network = made(MTT).networks.new(real, torch.Generator().manual_seed(0))
    weights = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    weights["classifier.bias"] = torch.eye(real.num_classes)[label]
    return lambda: weights


def judging(real, run, *said):
    transform = fit_transform(real, "normalize")
    return Initialization(real, transform, TINY["network"], [constant(real, c) for c in said], run)


def test_where_no_expert_is_right_images_are_any_of_the_class_and_labels_hard(
    make_blobs, run, caplog
):
    real = make_blobs((20, 8, 4))
    judge = judging(real, run, 0, 2)
    found = judge.candidates([3, 3, 3])
    assert [len(own) for own in found] == [3, 8, 3]
    assert sorted(found[1].tolist()) == real.of_class(1).tolist()
    assert "an image of 1 of 3 classes rightly" in caplog.text
    canvas = Pixels(start="correct").make(real, 3, run, candidates=found)
    logits = judge.logits(canvas, "right")
    assert torch.equal(logits[:3], torch.eye(3)[[0, 0, 0]])  # what the right one says
    assert torch.equal(logits[3:6], 4.6 * torch.eye(3)[[1, 1, 1]])
    assert torch.equal(judge.logits(canvas, "one"), torch.eye(3)[[0] * 9])


def test_a_mosaic_is_labelled_by_what_experts_say_of_its_tiles(make_blobs, run):
    real = make_blobs((20, 20, 20))
    transform, net = fit_transform(real, "normalize"), made(MTT).networks
    nets = [net.new(real, torch.Generator().manual_seed(seed)) for seed in (0, 5)]
    judge = Initialization(real, transform, TINY["network"], [n.state_dict for n in nets], run)
    mixed = real.batch(torch.randperm(60, generator=run.generator("mixed"))[:36])
    canvas = start_canvas(real, 3, run.generator, factor=2)
    canvas.images = mosaic(mixed.unflatten(0, (9, 4)), 2)  # of all classes
    logits = judge.logits(canvas, "right")
    tiles, labels = canvas.decode()
    said = torch.stack([n(transform.forward(tiles)) for n in nets]).detach()  # (2, 36, 3)
    right = said.argmax(-1) == labels
    told = right.any(0).view(9, 4)
    counts = set(told.sum(1).tolist())
    assert 0 in counts and counts & {1, 2, 3}  # also mosaics of which some tiles are right
    for row, label in enumerate(canvas.labels.tolist()):
        views = range(4 * row, 4 * row + 4)
        own = [said[right[:, k], k].mean(0) for k in views if right[:, k].any()]
        expected = torch.stack(own).mean(0) if own else 4.6 * torch.eye(3)[label]
        assert torch.allclose(logits[row], expected, atol=1e-5)
    one = judge.logits(canvas, "one")
    assert torch.allclose(one, said[0].unflatten(0, (9, 4)).mean(1), atol=1e-5)


class Killed(BaseException):
    pass


def test_iterates_are_kept_where_they_are_due_also_through_a_kill(
    make_blobs, run, tmp_path, monkeypatch
):
    real, fields = make_blobs((20, 8, 4)), TINY | {"iterate_every": 2, "steps": 5}
    made(DATM, fields)(real, 2, run.with_(folder=tmp_path / "whole"))
    assert [p.stem for p in list_iterates(tmp_path / "whole")] == ["step-000002", "step-000004"]
    after = TrajectoryObjective.after

    def dying(self, step, canvas):  # the iterate of step 4 is there, its checkpoint is not
        after(self, step, canvas)
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrajectoryObjective, "after", dying)
        with pytest.raises(Killed):
            made(DATM, fields)(real, 2, run.with_(folder=tmp_path / "cut"))
    made(DATM, fields)(real, 2, run.with_(folder=tmp_path / "cut"))
    pairs = zip(*(list_iterates(tmp_path / name) for name in ("whole", "cut")), strict=True)
    assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)


def test_short_budgets_of_ftd_forget_the_first_images():
    for budget in ("quick", "standard", "paper"):
        method = FTD.budget(budget)
        assert method.trajectory.ema**method.descent.steps < 0.1, budget


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"start_max": 5, "span": 1, "expert_epochs": 4}, "start_max is 5"),
        ({"gpus": 0}, "gpus is 0"),
        ({"classifier_images": -1}, "classifier_images is -1"),
        ({"classifier_syn_lr": -0.1}, "classifier_syn_lr is -0.1"),
        ({"start_min": 2, "start_max": 2}, "start_min is 2"),
        ({"experts": 0}, "experts is 0"),
        ({"student_steps": 0}, "student_steps is 0"),
        ({"labels": "learned"}, "labels is 'learned'"),
        ({"labels": "regression"}, "labels is 'regression', of which lad can make nothing"),
        ({"gradient": "finite"}, "gradient is 'finite'"),
        ({"space": "latent"}, "space is 'latent'"),
        ({"canvas": "pyramid"}, "canvas is 'pyramid', of which lad can make nothing"),
        ({"canvas": "tiled", "start": "correct"}, "start is 'correct' with canvas 'tiled'"),
        ({"factor": 2}, "lad has no field 'factor' with canvas 'pixels'; use canvas=tiled"),
        ({"start": "tile"}, "start is 'tile'"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"lr_labels": 0.0}, "lr_labels is 0.0"),
        ({"lr_syn_lr": -1.0}, "lr_syn_lr is -"),
        ({"augment": "blur"}, "blur"),
        ({"matching": "both"}, "matching is 'both'"),
        ({"adjustment": "log"}, "adjustment is 'log'"),
        ({"weight_scale": "max"}, "weight_scale is 'max'"),
        ({"classifier_weight": 0.0}, "classifier_weight is 0.0"),
        ({"classifier_epochs": 0}, "classifier_epochs 0"),
        ({"classifier_lr": 0.0}, "classifier_lr is 0.0"),
        ({"expert_lr": 0.0}, "expert_lr is 0.0"),
        ({"syn_lr": float("inf")}, "syn_lr is inf"),
        ({"tau": float("nan")}, "tau is nan"),
        ({"start_now": -5}, "start_now is -5"),
        ({"bounded": True}, "bounded is True with space 'network'"),
        ({"labels": "teacher"}, "labels is 'teacher' with matching 'joint'"),
    ],
)
def test_bad_fields_are_refused_before_anything_is_trained(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        made(LAD, LAD_TINY, **fields).check()


def test_networks_with_running_statistics_are_refused(make_blobs, run):
    with pytest.raises(InputError, match="bn"):
        made(MTT, network="convnet-d2-w8-bn")(make_blobs((20, 8, 4)), 2, run)


def test_experts_are_shared_by_methods(make_blobs, run):
    real = make_blobs((20, 8, 4))
    first = made(MTT)(real, 2, run)
    second = made(TESLA)(real, 2, run)
    keys = {syn.provenance["experts"]["key"] for syn in (first, second)}
    assert len(keys) == 1 and second.provenance["seconds_from_cache"] > 0


def test_fields_are_json_like_and_rebuild_the_method():
    method = LAD.budget("quick")
    assert made(LAD, method.fields()) == method
    assert all(isinstance(v, int | float | str | bool) for v in method.fields().values())


def test_space_for_both_kinds_of_experts_is_asked_for_before_any_is_trained(
    make_blobs, run, monkeypatch
):
    from potstill.experts import trajectories
    from potstill.run import StorageError

    real = make_blobs((20, 8, 4))
    method, asked = made(LAD, LAD_TINY), []

    def trained(self, *args, reserve=0, **options):
        asked.append(reserve)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Experts, "trained", trained)
        for one in (method, method.with_(matching="plain")):
            with pytest.raises(Killed):
                one.open(real, run)
    classifiers = 4 * (8 * 2 * 2 + 1) * 3 * 2 * 3  # weights and biases, experts, epochs 0-2
    assert asked == [classifiers, 0]
    skeleton = method.networks.new(real, torch.Generator().manual_seed(0))
    backbones = 4 * sum(p.numel() for p in skeleton.parameters())
    snapshots = method.trajectory.snapshots() | {method.networks.expert_epochs}
    needed = backbones * 2 * len(snapshots) + classifiers
    monkeypatch.setattr(trajectories.Rows.require_space.__globals__["shutil"], "disk_usage",
                        lambda folder: type("Usage", (), {"free": needed - 1}))  # fmt: skip
    with pytest.raises(StorageError, match="and what follows needs"):
        method(real, 2, run)
