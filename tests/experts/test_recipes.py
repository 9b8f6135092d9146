"""Each recipe against its stages written out: plain loops, formulas by hand, float64."""

import copy
import math

import pytest
import torch

from potstill import nets
from potstill.data.mixing import mixup
from potstill.experts.global_local import CumulativeLoss, Mixtures, doubled, rebalanced_weights
from potstill.experts.recipes import RECIPES, train_recipe
from potstill.losses import REMEDIES, priors
from potstill.nets import Examples, Training, train_many
from potstill.nets.feed import Feed
from potstill.run import InputError, Run

RUN = Run(seed=5, device="cpu", quiet=True)
COUNTS = [18, 6, 3]
LABELS = torch.tensor([c for c, n in enumerate(COUNTS) for _ in range(n)])
HOW = Training(epochs=5, batch=9, lr=0.1, momentum=0.9, weight_decay=1e-3)


class Centre:
    def forward(self, x):
        return x * 2 - 1


def examples():
    draw = torch.Generator().manual_seed(1)
    noise = 0.3 * torch.rand(27, 1, 8, 8, generator=draw).double()
    return Examples(0.2 + 0.25 * LABELS[:, None, None, None] + noise, LABELS, Centre())


def network(name="convnet-d2-w4-in"):
    draw = RUN.generator("net", 0)
    return nets.create(name, channels=1, size=8, classes=3, generator=draw).double()


def by_recipe(recipe, name="convnet-d2-w4-in", **options):
    net = network(name)
    train_recipe(recipe, [net], examples(), HOW, generators=RUN.generator, quiet=True, **options)
    return net


def first_stage(how=HOW, name="convnet-d2-w4-in"):
    net = network(name)
    train_many([net], examples(), how, generators=RUN.generator, quiet=True)
    return net


def log_p(logits):
    return (logits.exp() / logits.exp().sum(1, keepdim=True)).log()


def nll(logits, targets):
    """-log p_y of each image, or the mean over soft labels."""
    if targets.ndim == 1:
        return -log_p(logits)[torch.arange(len(targets)), targets]
    return -(log_p(logits) * targets).sum(1)


def descend(net, how, leaves, forward, loss, project=lambda: None, stage="stage-2/", mix=None):
    """Stochastic gradient descent with momentum, as in the books."""
    feed = Feed(examples(), how, lambda p, k, i: RUN.generator(stage + p, k, i), net)
    speed, step = [torch.zeros_like(leaf) for leaf in leaves], 0
    for epoch in range(how.epochs):
        for part in feed.order(0, epoch).split(how.batch):
            x, targets = feed.batch(0, step, part)
            if mix is not None:
                x, targets = mix(x, targets, step)
            slopes = torch.autograd.grad(loss(forward(x), targets, epoch).mean(), leaves)
            with torch.no_grad():
                for leaf, slope, v in zip(leaves, slopes, speed, strict=True):
                    v.mul_(how.momentum).add_(slope + how.weight_decay * leaf)
                    leaf -= how.lr_at(epoch) * v
                project()
            step += 1


def same(a, b):
    for (name, value), other in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, msg=lambda m, name=name: f"{name}: {m}")


def second(sampling, **changes):
    fields = {**vars(HOW), "epochs": 10, "schedule": "cosine", "sampling": sampling, **changes}
    return Training(**fields)


def test_crt():
    net = first_stage()
    nets.initialise(net.classifier, RUN.generator("stage-2/weights", 0, 0))
    leaves = [*net.classifier.parameters()]
    assert second("cyclic").facts["sampling"] == "cyclic"
    descend(net, second("cyclic"), leaves, net, lambda z, y, epoch: nll(z, y))
    same(by_recipe("crt"), net)


def test_lws():
    net = first_stage()
    scale = torch.ones(3).double().requires_grad_()
    how = second("cyclic", epochs=5)
    descend(net, how, [scale], lambda x: net(x) * scale, lambda z, y, epoch: nll(z, y))
    with torch.no_grad():
        net.classifier.weight *= scale[:, None]
        net.classifier.bias *= scale
    assert (scale - 1).abs().max() > 0.01
    same(by_recipe("lws"), net)


def test_weight_balancing():
    stage = {"weight_decay": 5e-3, "schedule": "cosine"}
    net = first_stage(Training(**{**vars(HOW), **stage}))
    weight = net.classifier.weight
    norms = [math.sqrt(sum(v * v for v in row)) for row in weight.tolist()]
    bound = min(norms) + 0.1 * (max(norms) - min(norms))
    w = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS]
    w = torch.tensor([3 * one / sum(w) for one in w]).double()

    def project():
        for row in weight:
            if (norm := float(row.norm())) > bound:
                row *= bound / norm

    def loss(z, y, epoch):
        return w[y] * nll(z, y)

    leaves = [*net.classifier.parameters()]
    descend(net, second("shuffled", weight_decay=0.1), leaves, net, loss, project)
    same(by_recipe("weight_balancing"), net)


def test_remix():
    """One stage: Remix all along, weights by effective number in the last fifth."""
    net = network()
    w = [(1 - 0.9999) / (1 - 0.9999**n) for n in COUNTS]
    w = torch.tensor([3 * one / sum(w) for one in w]).double()

    def mix(x, y, step):
        onehot = torch.eye(3).double()[y]
        return mixup(x, onehot, RUN.generator("mixup", 0, step), torch.tensor(COUNTS))

    def loss(z, y, epoch):
        return nll(z, y * w if epoch >= 4 else y)

    descend(net, HOW, [*net.parameters()], net, loss, stage="", mix=mix)
    found, row = network(), REMEDIES["remix_drw"]
    how = {"generators": RUN.generator, "quiet": True, "loss": row.loss_for(COUNTS)}
    train_many([found], examples(), HOW.under("remix_drw"), **how)
    same(found, net)


def test_mislas():
    stage = Training(**{**vars(HOW), "mixing": "mixup"})
    net = first_stage(stage)
    n1, nk = max(COUNTS), min(COUNTS)
    smooth = [0.3 * math.sin(math.pi * (n - nk) / (2 * (n1 - nk))) for n in COUNTS]
    smooth = torch.tensor(smooth).double()
    scale = torch.ones(3).double().requires_grad_()
    # a step size of a half: the same descent in a variable that is sqrt(2) times as large,
    # were it not for the weight decay, which is not halved
    held = [p.detach().clone() for p in net.classifier.parameters()]
    moved = [torch.zeros_like(p).requires_grad_() for p in held]
    weight, bias = held
    how = second("balanced", weight_decay=0.0)

    def forward(x):
        z = net.features(x) @ (weight + moved[0] * 0.5**0.5).T + bias + moved[1] * 0.5**0.5
        return z * scale

    def loss(z, y, epoch):
        return (1 - smooth[y]) * nll(z, y) - smooth[y] * log_p(z).mean(1)

    descend(net, how, [*moved, scale], forward, loss)
    with torch.no_grad():
        net.classifier.weight.copy_((weight + moved[0] * 0.5**0.5) * scale[:, None])
        net.classifier.bias.copy_((bias + moved[1] * 0.5**0.5) * scale)
    found = network()
    first, last = RECIPES["mislas"]
    plain = {**last.changes, "weight_decay": 0.0}
    changed = (first, type(last)(**{**vars(last), "changes": plain}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "mislas", changed)
        train_recipe("mislas", [found], examples(), HOW, generators=RUN.generator, quiet=True)
    same(found, net)


@pytest.mark.parametrize(("recipe", "measures"), [("mislas", True), ("crt", False)])
def test_whether_batch_norm_goes_on_to_measure(recipe, measures):
    name = "convnet-d2-w4-bn"
    how = Training(**{**vars(HOW), "mixing": "mixup"}) if recipe == "mislas" else HOW
    before, after = first_stage(how, name), by_recipe(recipe, name)
    for (key, a), b in zip(before.body.named_buffers(), after.body.buffers(), strict=True):
        assert torch.equal(a, b) != measures, key
    for a, b in zip(before.body.parameters(), after.body.parameters(), strict=True):
        assert torch.equal(a, b) and b.requires_grad


# -- GLMC ------------------------------------------------------------------------------------------


def test_the_cumulative_loss():
    draw = torch.Generator().manual_seed(0)
    found = torch.randn(4, 13, generator=draw).double()
    y = torch.rand(4, 3, generator=draw).double()
    w = [n**-0.8 for n in COUNTS]
    w = torch.tensor([3 * one / sum(w) for one in w]).double()
    torch.testing.assert_close(rebalanced_weights(torch.tensor(COUNTS), 0.8), w)
    for share in (0.0, 0.3, 0.9):
        a = share**2
        f1, f2, g1, g2 = (found[:, 3 * k : 3 * k + 3] for k in range(4))
        wanted = (1 - a) * (nll(f1, y) + nll(f2, y)) + a * (nll(g1, y * w) + nll(g2, y * w))
        loss = CumulativeLoss(torch.tensor(COUNTS), 0.8, 2.0).at(share)
        torch.testing.assert_close(loss(found, y), wanted - 2.0 * found[:, 12])


def test_heads_of_two_views_and_where_gradients_stop():
    net = network()
    twin = doubled(net, torch.Generator().manual_seed(0))
    x = torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    head, found = twin.classifier, twin(x)
    h = [net.features(x[:, k : k + 1]) for k in (0, 1)]
    z = [head.projection(one) for one in h]
    p = [head.prediction(one) for one in z]

    def cos(a, b):
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    alike = cos(p[0], z[1].detach()) + cos(p[1], z[0].detach())
    own = [one @ head.weight.T + head.bias for one in h]
    wanted = torch.cat([head.plain(h[0]), head.plain(h[1]), *own, alike[:, None]], 1)
    torch.testing.assert_close(found, wanted)
    leaves = [*net.body.parameters()]
    for a, b in zip(torch.autograd.grad(found[:, 12].sum(), leaves, retain_graph=True),
                    torch.autograd.grad(alike.sum(), leaves), strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


def test_two_mixtures_of_one_pair():
    flat = Examples((LABELS + 1.0)[:, None, None, None].expand(27, 1, 8, 8) / 4, LABELS, Centre())
    like = network()
    feed = Mixtures(flat, HOW, RUN.generator, like)
    x, targets = feed.batch(0, 3, torch.arange(27))
    keep = float(torch.rand(3, generator=RUN.generator("mixup", 0, 3))[0])
    a = (LABELS + 1.0).double() / 2 - 1
    others = ((x[:, 0, 0, 0] - keep * a) / (1 - keep) + 1) * 2 - 1
    b = others.round().long()
    assert torch.allclose(others, b.double(), atol=1e-5)
    eye = torch.eye(3).double()
    torch.testing.assert_close(targets, keep * eye[LABELS] + (1 - keep) * eye[b])
    shares = torch.tensor([n**0.8 for n in COUNTS]).double()
    assert (b.bincount(minlength=3) - 27 * shares / shares.sum()).abs().max() < 1
    ends = torch.stack([a, (b + 1.0).double() / 2 - 1], 1)[:, :, None, None]
    assert ((x[:, 1:] - ends).abs().amin(1) < 1e-6).all()  # every pixel is of one image whole


def test_glmc_is_one_descent_on_its_loss():
    net, how = network(), Training(**{**vars(HOW), "schedule": "cosine", "weight_decay": 5e-3})
    twin, loss, step = (
        doubled(net, RUN.generator("heads", 0, 0)),
        CumulativeLoss(torch.tensor(COUNTS)),
        0,
    )
    feed, leaves = Mixtures(examples(), how, RUN.generator, twin), [*twin.parameters()]
    optimizer = torch.optim.SGD(leaves, how.lr, 0.9, weight_decay=5e-3)
    for epoch in range(5):
        optimizer.param_groups[0]["lr"] = how.lr_at(epoch)
        for part in feed.order(0, epoch).split(9):
            x, y = feed.batch(0, step, part)
            optimizer.zero_grad()
            loss.at(epoch / 5)(twin(x), y).mean().backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        net.classifier.weight.copy_(twin.classifier.weight)
        net.classifier.bias.copy_(twin.classifier.bias)
    same(by_recipe("glmc"), net)


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_many_networks_stacked_equal_each_alone(recipe):
    def three():
        return [copy.deepcopy(network()) for _ in range(2)]

    alone, stacked = three(), three()
    for some, backend in ((alone, "sequential"), (stacked, "stacked")):
        train_recipe(recipe, some, examples(), HOW, generators=RUN.generator, quiet=True,
                     backend=backend)  # fmt: skip
    for a, b in zip(alone, stacked, strict=True):
        assert type(b.classifier) is torch.nn.Linear and all(
            p.requires_grad for p in b.parameters()
        )
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert torch.allclose(p, q, atol=1e-8)
    same(alone[0], by_recipe(recipe))


def test_every_recipe_has_a_name_in_the_table():
    rows = [REMEDIES[name] for name in priors()]
    assert {row.stages for row in rows} == {"", *RECIPES}
    for row in rows:
        assert not row.stages or (row.loss, row.sampling, row.mixing, row.post_hoc) == (
            "plain", "shuffled", "none", "none"
        )  # fmt: skip


def test_bad_arguments():
    with pytest.raises(InputError, match="recipe is 'mixup'; use one of crt"):
        by_recipe("mixup")
    some = Examples(torch.rand(2, 1, 8, 8), torch.tensor([0, 2]), Centre())
    with pytest.raises(
        InputError, match="recipe is 'glmc', but class 1 has no images; use 'plain'"
    ):
        train_recipe("glmc", [network()], some, HOW, generators=RUN.generator)
