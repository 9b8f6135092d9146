"""Modules and constructors of the user's own: names that hold what they compute."""

import pytest
import torch
from torch import nn

import potstill
from potstill.data import Normalize
from potstill.evaluation import PROBES, PROTOCOLS
from potstill.evaluation.scores import some_networks
from potstill.methods import DM, SFM, Random
from potstill.nets import create, parse
from potstill.nets.backbone import check_name, open_backbone
from potstill.nets.online import OnlineNetwork
from potstill.networks import FrozenBackbone
from potstill.run import InputError, Run

PLAIN = Normalize(torch.full((3,), 0.5), torch.full((3,), 0.25))
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _global_generator_is_left_alone():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


class Halved(nn.Module):
    def __init__(self, factor=1.0, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.factor = factor
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.linspace(-1, 1, value.numel()).view_as(value))

    def forward(self, x):
        return self.factor * self.conv(x).relu().mean((2, 3))


class Doubled(Halved):
    def forward(self, x):
        return 2 * super().forward(x)


def quiet(make):
    with torch.random.fork_rng(devices=[]):
        return make()


def name_of(module=None, name="mine", mean=MEAN, std=STD, size=8):
    module = quiet(Halved) if module is None else module
    return potstill.backbone_of(module, size=size, mean=mean, std=std, name=name)


def test_a_module_is_a_backbone_on_its_own_constants():
    module = quiet(Halved)
    found = open_backbone(name_of(module), (3, 8, 8), generator(), PLAIN)
    x = torch.rand(2, 3, 8, 8, generator=generator(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    torch.testing.assert_close(found.features(x), module((x - mean) / std))
    assert (found.label, found.dim, found.size, found.channels) == ("mine", 4, (8, 8), 3)
    assert module.conv.weight.requires_grad and module.training  # a copy was frozen


def test_the_key_is_that_of_weights_class_settings_constants_and_name():
    changed = quiet(Halved)
    with torch.no_grad():
        changed.conv.bias[0] += 1e-4
    strided = quiet(Halved)
    strided.conv.stride = (2, 2)
    switched = quiet(Halved)
    switched.conv.weight.data = switched.conv.weight.data.clone()
    names = [
        name_of(), name_of(changed), name_of(strided), name_of(quiet(lambda: Halved(2.0))),
        name_of(quiet(Doubled)), name_of(name="other"), name_of(mean=STD), name_of(std=MEAN),
        name_of(size=9),
    ]  # fmt: skip
    assert len({n.rpartition("/")[2] for n in names}) == len(names)
    assert name_of(switched) == names[0]  # equal values, another tensor
    kept = name_of(switched)
    with torch.no_grad():
        switched.conv.weight.zero_()  # what was named before stays what it was
    assert open_backbone(kept, (3, 8, 8), generator(), PLAIN).features(torch.ones(1, 3, 8, 8)).any()


def test_functions_that_nobody_kept_the_text_of_are_told_apart():
    made = []
    for factor in (2, 3):
        space = {"nn": nn}
        text = f"class Net(nn.Module):\n    def forward(self, x): return x.flatten(1) * {factor}"
        namespace = compile(text, "<nowhere>", "exec")
        exec(namespace, space)
        made.append(name_of(space["Net"]()))
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"mean": [0.5]}, "one value per channel"),
        ({"std": [0.0, 1, 1]}, "positive std"),
        ({"name": "My Net"}, "small letters"),
        ({"size": 0}, "size is 0"),
        ({"mean": [0.5] * 4, "std": [0.2] * 4}, r"'mine', which cannot see .* 4 channel"),
    ],
)
def test_bad_arguments_give_one_sentence(how, text):
    with pytest.raises(InputError, match=text) as caught:
        name_of(**how)
    assert "\n" not in str(caught.value)


def test_names_of_another_session_are_refused():
    for name in ("module:mine/0123456789abcdef", "own:mine/0123456789abcdef"):
        with pytest.raises(InputError, match=r"another Python session; give the same one again"):
            check_name(name)
    with pytest.raises(InputError, match="another Python session"):
        parse("own:mine/0123456789abcdef")


def test_a_field_takes_a_module_that_says_what_it_sees():
    module = quiet(Halved)
    with pytest.raises(InputError, match=r"a Halved without size; use potstill\.backbone_of"):
        FrozenBackbone(backbone=module)
    module.size, module.mean, module.std = 8, MEAN, STD
    first = FrozenBackbone(backbone=module).backbone
    assert first.startswith("module:halved/") and SFM().with_(backbone=module).fields()["backbone"]
    with torch.no_grad():
        module.conv.weight.mul_(1.5)
    assert FrozenBackbone(backbone=module).backbone != first


class Classifier(nn.Module):
    def __init__(self, width=6, bias=True):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(1))
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, width), nn.SiLU())
        self.head = nn.Linear(width, 10, bias=bias)

    def forward(self, x):
        return self.head(self.scale * self.inner(x))


@pytest.mark.parametrize("bias", [True, False])
def test_a_last_linear_layer_is_the_classifier(bias):
    name = potstill.network_of(lambda: Classifier(bias=bias), name="whole")
    net = create(name, channels=3, size=8, classes=10, generator=generator())
    x = torch.rand(5, 3, 8, 8, generator=generator(1))
    assert net.feature_dim == 6 and net.classifier.weight.shape == (10, 6)
    assert net.features(x).shape == (5, 6)
    whole = quiet(lambda: Classifier(bias=bias))
    state = net.body.state_dict() | {f"head.{n}": v for n, v in net.classifier.state_dict().items()}
    whole.load_state_dict(state, strict=bias)
    torch.testing.assert_close(net(x), whole(x))


def test_outputs_of_other_modules_are_features():
    name = potstill.network_of(lambda: Classifier(), name="features")
    net = create(name, channels=3, size=8, classes=7, generator=generator())
    assert net.feature_dim == 10 and net.classifier.weight.shape == (7, 10)
    bare = potstill.network_of(lambda: nn.Conv2d(3, 2, 3), name="conv")
    assert create(bare, channels=3, size=8, classes=7, generator=generator()).feature_dim == 72
    with pytest.raises(InputError, match=r"'own:conv/\w+', which cannot see images of 8x8 with 1"):
        create(bare, channels=1, size=8, classes=7, generator=generator())


def test_the_seed_decides_all_weights():
    name = potstill.network_of(Classifier, name="seeded")
    first, again, other = (
        create(name, channels=3, size=8, classes=10, generator=generator(s)) for s in (0, 0, 1)
    )
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.body.scale, other.body.scale)


def test_restarted_networks_are_new_ones():
    name = potstill.network_of(Classifier, name="renewed")
    online = OnlineNetwork(name, shape=(3, 8, 8), classes=10, generator=generator(0))
    online.restart(generator(1))
    fresh = create(name, channels=3, size=8, classes=10, generator=generator(1))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, online.network.state_dict()[key]), key


def test_constructors_that_differ_have_other_names():
    names = [
        potstill.network_of(make, name="a")
        for make in (Classifier, lambda: Classifier(7), lambda: Halved(2.0), lambda: Halved(3.0))
    ]
    assert len(set(names)) == 4
    assert potstill.network_of(lambda: Classifier(), name="a") == names[0]
    with pytest.raises(InputError, match=r"makes a int; return a torch\.nn\.Module"):
        potstill.network_of(lambda: 3)
    with pytest.raises(InputError, match="called without arguments"):
        potstill.network_of(lambda x: x)


def test_dropout_is_told(caplog):
    potstill.network_of(lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1)))
    assert "dropout" in caplog.text


def test_students_by_a_constructor(tmp_path):
    train, test, _ = potstill.load_pair("digits")
    run = Run(cache=tmp_path, quiet=True)
    syn = Random()(train, 2, run)
    protocol = PROTOCOLS["quick-noflip"].with_(epochs=2)

    def make():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    how = {"protocol": protocol, "runs": 2, "run": run, "baseline": False, "quantized": False}
    (one,) = potstill.evaluate(syn, train, test, network={"small": make}, **how)
    (other,) = potstill.evaluate(syn, train, test, network=make, **how)
    assert one.network.startswith("own:small/") and other.network.startswith("own:make/")
    (again,) = potstill.evaluate(syn, train, test, network={"small": make}, **how)
    assert one.accuracy == again.accuracy and one.network == again.network
    assert some_networks(["convnet", make])[0] == "convnet"
    method = DM(networks=DM().networks.turned("random", "networks")).with_(network=make, steps=1)
    assert len(method(train, 1, run)) == 10


def test_a_distillation_through_a_module_of_ones_own(tmp_path):
    train, test, _ = potstill.load_pair("digits")
    grey = quiet(lambda: Halved(channels=1))
    name = potstill.backbone_of(grey, size=8, mean=[0.5], std=[0.3])
    run = Run(cache=tmp_path / "cache", quiet=True)
    method = SFM.budget("quick", backbone=name, steps=2)
    syn = potstill.distill(method, train, ipc=1, out=tmp_path / "run", run=run)
    assert syn.provenance["backbone"]["key"] == name.rpartition("/")[2]
    (score,) = potstill.evaluate(
        syn, train, test, network="same", protocol=PROBES["probe"].with_(epochs=2), runs=1,
        run=run, baseline=False, quantized=False,
    )  # fmt: skip
    assert score.network == "mine" and score.backbone["same"]
    with torch.no_grad():
        grey.conv.bias.add_(1)
    other = method.with_(backbone=potstill.backbone_of(grey, size=8, mean=[0.5], std=[0.3]))
    assert other.key(train, 1, run) != method.key(train, 1, run)
