"""Small trainings of every kind that goes on where it was left, for tests."""

from potstill.data import DSA, Normalize
from potstill.experts import selfsupervised, train_experts
from potstill.experts.classifiers import train_classifiers
from potstill.experts.pool import train_pool
from potstill.experts.selfsupervised import SelfSupervision, train_backbone
from potstill.nets import Sharpness, Training
from potstill.nets.feed import Feed

NETWORK = "convnet-d2-w8-in"
PLAIN = Training(epochs=3, batch=8, lr=0.05, momentum=0, sharpness=Sharpness())
HEAVY = Training(epochs=3, batch=8, lr=0.05, augment=DSA.parse("color_crop"))
ADAMW = Training(epochs=3, batch=8, optimizer="adamw", lr=1e-3, schedule="cosine")
SELF = SelfSupervision(network="convnet-d2-w8-bn", epochs=3, batch=8, hidden=16, projection=8)


def pool(real, run):
    found = train_pool(real, Normalize.fit(real), NETWORK, 2, HEAVY, run)
    return [value for state in found.trained for _, value in sorted(state.items())]


def experts(training):
    def work(real, run):
        found = train_experts(real, Normalize.fit(real), NETWORK, 2, training, run, epochs=[1, 3])
        return [found.rows.read(member, epoch) for member in range(2) for epoch in (1, 3)]

    return work


def classifiers(real, run):
    transform = Normalize.fit(real)
    bodies = train_experts(real, transform, NETWORK, 2, PLAIN, run, epochs=[0])
    second = Training(epochs=3, batch=8, lr=0.05, sampling="cyclic")
    found = train_classifiers(real, transform, bodies, 0, second, run, epochs=[3])
    return [found.rows.read(member, 3) for member in range(2)]


def backbone(real, run):
    return [*train_backbone(real, SELF, run, run.cache / "backbone").body.state_dict().values()]


KINDS = {
    "pool": (pool, 24),  # steps: two members, three epochs of four
    "experts": (experts(PLAIN), 24),
    "experts with momentum": (experts(HEAVY), 24),
    "experts with AdamW": (experts(ADAMW), 24),
    "classifiers": (classifiers, 36),  # three classes, each as often as the largest
    "backbone": (backbone, 9),
}


def before_each_step(act):
    """Call ``act(number of steps begun)`` before each step; return how to undo that."""
    kind, begun = selfsupervised._Training, []
    batch, loss = Feed.batch, kind._loss

    def spied(original):
        def work(*args):
            act(len(begun))
            begun.append(1)
            return original(*args)

        return work

    Feed.batch, kind._loss = spied(batch), spied(loss)

    def undo():
        Feed.batch, kind._loss = batch, loss
        return len(begun)

    return undo
