from dataclasses import replace

import pytest
import torch

from potstill.data import ImageSet, Normalize
from potstill.evaluation import student
from potstill.evaluation.examples import random_examples, real_examples, synthetic_examples
from potstill.evaluation.metrics import overall
from potstill.evaluation.protocol import Protocol
from potstill.evaluation.student import train_students
from potstill.nets import Examples, Training
from potstill.run import InputError, Run
from potstill.synthetic import SyntheticSet

NETWORK = "convnet-d2-w8-in"
TINY = Protocol(
    name="tiny", training=Training(epochs=40, batch=8, optimizer="adamw", lr=1e-2, cutmix=0.5)
)


def toy(counts, seed):
    """Stripes along three directions on noise, 8x8 grey; hard for some images, never hopeless."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    patterns = torch.stack([torch.sin(1.6 * wave) for wave in (x, y, x + y)])
    noise = torch.randn(len(labels), 8, 8, generator=generator)
    images = (128 + 40 * patterns[labels] + 40 * noise).clamp(0, 255).to(torch.uint8)
    n = len(labels)
    return ImageSet(
        images[:, None], labels, ("a", "b", "c"), "toy", torch.arange(n), f"{seed:016x}"
    )


TRAIN, TEST = toy((30, 12, 5), 0), toy((20, 20, 20), 1)
TRANSFORM = Normalize.fit(TRAIN)


def examples(seed=0, count=5):
    return random_examples(TRAIN, (count,) * 3, TRANSFORM, Run(seed=seed, device="cpu"))


def train(protocol=TINY, runs=2, seed=0, of=None, **more):
    run = Run(seed=seed, device="cpu", quiet=True)
    how = dict(network=NETWORK, test=TEST, runs=runs, run=run) | more
    return train_students(of or examples(), protocol.training, protocol, **how)


@pytest.fixture(scope="module")
def pair():
    return train()


def test_students_learn(pair):
    assert pair.chosen.shape == (2, 3)
    assert min(overall(pair.chosen, TEST.counts)) > 60  # chance is 33
    assert pair.last is pair.chosen and pair.epochs == (40, 40)


def test_a_student_that_never_saw_a_class_has_a_short_row_for_it(pair):
    assert pair.norms.shape == (2, 3) and (pair.norms > 0).all()
    kept = TRAIN.labels < 2
    rows = TRAIN.rows()[kept]
    decay = Training(epochs=40, batch=8, lr=1e-2, weight_decay=0.5, optimizer="adamw")
    alone = train(
        Protocol(name="tiny", training=decay), of=Examples(rows, TRAIN.labels[kept], TRANSFORM)
    )
    assert (alone.norms[:, 2] < alone.norms[:, :2].amin(1)).all()


def test_same_seed_same_scores_and_different_seed_different(pair):
    assert torch.equal(train().chosen, pair.chosen)
    assert not torch.equal(train(seed=1).chosen, pair.chosen)


def test_a_student_does_not_depend_on_how_many_there_are(pair):
    assert torch.equal(train(runs=1).chosen[0], pair.chosen[0])
    assert torch.equal(train(runs=3).chosen[:2], pair.chosen)


def test_students_side_by_side_score_what_they_score_in_turn(pair):
    torch.set_num_threads(2)
    try:
        assert torch.equal(train().chosen, pair.chosen)
    finally:
        torch.set_num_threads(1)


def test_students_differ_from_each_other_before_and_after_training(pair):
    assert not torch.equal(pair.chosen[0], pair.chosen[1])
    untrained = train(TINY.with_(lr=0.0, epochs=1)).chosen
    assert not torch.equal(untrained[0], untrained[1])


def test_test_set_is_seen_once_per_student_and_only_at_the_end(monkeypatch):
    events = []

    def recorded(name):
        original = getattr(student, name)

        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            events.append(name)
            return result

        return call

    for name in ("predict", "train_many"):
        monkeypatch.setattr(student, name, recorded(name))
    train(runs=2)
    assert events == ["train_many", "predict", "predict"]


def test_test_max_is_at_least_last_and_last_is_what_last_gives(pair):
    looks = train(TINY.with_(selection="test_max", test_every=1))
    assert torch.equal(looks.last, pair.chosen)
    best, last = overall(looks.chosen, TEST.counts), overall(looks.last, TEST.counts)
    assert all(b >= a for b, a in zip(best, last, strict=True))
    assert sum(best) > sum(last)  # forty looks at noisy scores: the habit pays, which is the point
    only_last = train(TINY.with_(selection="test_max", test_every=40))
    assert torch.equal(only_last.chosen, only_last.last) and only_last.epochs == (40, 40)


def test_val_chooses_on_the_watched_set_and_tests_the_chosen_weights(pair):
    """The labels of the watched set are rotated, so the worst student looks best."""
    liar = replace(TEST, labels=(TEST.labels + 1) % 3)
    outcome = train(TINY.with_(selection="val", test_every=1), watch=liar)
    assert torch.equal(outcome.last, pair.chosen)
    chosen, last = overall(outcome.chosen, TEST.counts), overall(outcome.last, TEST.counts)
    assert sum(chosen) < sum(last)
    assert outcome.epochs != (40, 40)


def test_random_examples_take_what_is_there_and_follow_the_seed():
    found = random_examples(TRAIN, (10, 10, 10), TRANSFORM, Run(seed=3, device="cpu"))
    assert torch.bincount(found.targets).tolist() == [10, 10, 5]
    assert len(found.images.flatten(1).unique(dim=0)) == 25  # without replacement
    assert found.images.dtype == torch.float32 and found.images.max() <= 1
    real = {tuple(image.flatten().tolist()) for image in TRAIN.batch(torch.arange(len(TRAIN)))}
    assert all(tuple(image.flatten().tolist()) in real for image in found.images)
    again = random_examples(TRAIN, (10, 10, 10), TRANSFORM, Run(seed=3, device="cpu"))
    other = random_examples(TRAIN, (10, 10, 10), TRANSFORM, Run(seed=4, device="cpu"))
    assert torch.equal(found.images, again.images)
    assert not torch.equal(found.images, other.images)


def test_random_examples_of_a_starved_artifact():
    found = random_examples(TRAIN, (2, 0, 1), TRANSFORM, Run(device="cpu"))
    assert found.targets.tolist() == [0, 0, 2]


def test_random_examples_are_those_of_the_method_random():
    from potstill.methods.selection.random import Random

    run = Run(seed=5, device="cpu")
    rows = Random().select(TRAIN, 4, run).positions
    found = random_examples(TRAIN, (4, 4, 4), TRANSFORM, run)
    assert torch.equal(found.images, TRAIN.batch(rows))


def synthetic(**more):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 2])
    return SyntheticSet(images, labels, TRAIN.classes, TRANSFORM, **more)


def test_tiled_artifacts_are_decoded_and_labels_follow():
    spec = {"kind": "tiled", "factor": 2, "formation": "single"}
    found = synthetic_examples(synthetic(decode=spec, weights=torch.tensor([1.0, 2.0, 3.0, 4.0])))
    assert found.images.shape == (16, 1, 8, 8)
    assert found.targets.tolist() == [0] * 8 + [1] * 4 + [2] * 4
    assert found.weights.tolist() == [1.0] * 4 + [2.0] * 4 + [3.0] * 4 + [4.0] * 4


def test_the_protocol_says_which_labels_are_used():
    soft = torch.full((4, 3), 1 / 3)
    with_soft = synthetic(soft_labels=soft)
    assert torch.equal(synthetic_examples(with_soft).targets, soft)
    assert torch.equal(synthetic_examples(with_soft, "soft").targets, soft)
    assert synthetic_examples(with_soft, "hard").targets.tolist() == [0, 0, 1, 2]
    with pytest.raises(InputError, match="labels is 'soft' but the artifact has none"):
        synthetic_examples(synthetic(), "soft")


def test_swapped_soft_labels_teach_the_swap():
    true = examples()
    swapped = torch.eye(3)[torch.tensor([1, 0, 2])[true.targets]]
    outcome = train(of=replace(true, targets=swapped), runs=1)
    a, b, c = outcome.chosen[0].tolist()
    assert a < 30 and b < 30 and c > 50


@pytest.mark.parametrize("prior", ["crt_trained", "mislas", "glmc", "weight_balancing"])
def test_students_train_in_stages(prior):
    of = real_examples(TRAIN, TRANSFORM)
    brief = TINY.with_(epochs=4)
    plain, found = train(brief, of=of), train(how := replace(brief, prior=prior), of=of)
    assert not torch.equal(plain.chosen, found.chosen)
    assert torch.equal(found.chosen[:1], train(how, of=of, runs=1).chosen)
    goals = torch.eye(3)[of.targets]
    exact = replace(of, targets=goals, regression=True)  # no classes, so the row has no meaning
    assert torch.equal(train(how, of=exact).chosen, train(brief, of=exact).chosen)
    with pytest.raises(
        InputError, match=f"prior is '{prior}' with selection 'val', but a training"
    ):
        replace(how, selection="val", test_every=2)


def test_full_examples_are_all_images_with_their_tail():
    found = real_examples(TRAIN, TRANSFORM)
    assert torch.bincount(found.targets).tolist() == [30, 12, 5]


def test_global_random_states_are_untouched():
    import numpy

    before = torch.get_rng_state(), numpy.random.get_state()[1].copy()
    train(runs=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (numpy.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize("gpu", [False, True])
def test_students_are_trained_as_the_device_likes_it(gpu, monkeypatch):
    seen = {}

    def recorded(*_, **how):
        seen.update(how)

    monkeypatch.setattr(student, "train_many", recorded)
    monkeypatch.setattr(Run, "on_gpu", property(lambda self: gpu))
    run = Run(device="cpu", quiet=True)
    object.__setattr__(run, "precision", "bf16")
    train_students(examples(), TINY.training, TINY, network=NETWORK, test=TEST, runs=1, run=run)
    assert (seen["precision"], seen["channels_last"]) == (
        ("bf16", True) if gpu else ("fp32", False)
    )


def tail(outcome):
    return float(outcome.chosen[:, 2].mean())


@pytest.mark.parametrize("prior", ["balanced_softmax", "balanced", "remix_drw", "post_hoc", "crt"])
def test_remedies_lift_the_tail_of_students_on_all_real_images(prior):
    of = real_examples(toy((60, 12, 3), 0), TRANSFORM)
    few = TINY.with_(epochs=15)
    assert tail(train(few.with_(prior=prior), of=of)) > tail(train(few, of=of)) + 5


def test_a_corrected_look_leaves_the_student_as_it_is(monkeypatch):
    """Looks between see the corrected classifier, training goes on with its own."""
    of = real_examples(toy((60, 12, 3), 0), TRANSFORM)
    plain = TINY.with_(epochs=6, prior="post_hoc")
    looking = plain.with_(selection="test_max", test_every=2)
    assert torch.equal(train(plain, of=of).last, train(looking, of=of).last)


def test_remedies_change_nothing_about_equal_classes():
    few = TINY.with_(epochs=3)
    plain = train(few, runs=1)
    for prior in ("balanced_softmax", "effective_number", "post_hoc"):
        assert torch.equal(train(few.with_(prior=prior), runs=1).chosen, plain.chosen)


RFAD = Protocol(
    name="rfad",
    training=Training(epochs=60, batch=100, lr=0.02, momentum=0.9, weight_decay=0.0),
    loss="squared_error",
    label_scale=8.0,
    centred=True,
)


def test_a_centred_student_begins_at_nothing_and_learns_scaled_targets(monkeypatch):
    trained = []
    original = student.train_many

    def kept(students, *args, **kwargs):
        x = torch.rand(4, 1, 8, 8)
        assert all((one(x) == 0).all() for one in students)
        before = [one.before.classifier.weight.clone() for one in students]
        original(students, *args, **kwargs)
        for one, first in zip(students, before, strict=True):
            assert torch.equal(one.before.classifier.weight, first)
            assert not torch.equal(one.classifier.weight, first)
        trained.extend(students)

    monkeypatch.setattr(student, "train_many", kept)
    found = train(RFAD, network="convnet-d2-w16-none")
    assert min(overall(found.chosen, TEST.counts)) > 60
    seen = examples()
    outputs = trained[0](TRANSFORM.forward(seen.images))
    own = outputs.detach().gather(1, seen.targets[:, None]).mean()
    assert 3 < float(own) < 7  # towards 8 (1 - 1/3), where plain targets would be 1


def test_centring_draws_nothing():
    before = torch.get_rng_state()
    train(RFAD.with_(epochs=1), runs=1)
    assert torch.equal(torch.get_rng_state(), before)
