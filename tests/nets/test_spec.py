import copy
import re

import pytest
import torch
from torch import nn

from potstill import nets
from potstill.nets import spec
from potstill.nets.alexnet import alexnet
from potstill.nets.layers import Network
from potstill.nets.vgg import vgg11
from potstill.run import InputError

SMALL = ["convnet-w8", "resnet18-in", "resnet18-bn", "resnet10-w8-in", "wrn16-w8-in", "vgg11-in",
         "alexnet", "mlp-w8", "lenet"]  # fmt: skip


def make(name, seed=0, channels=3, size=32, classes=10):
    generator = torch.Generator().manual_seed(seed)
    return nets.create(name, channels=channels, size=size, classes=classes, generator=generator)


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "name",
    ["convnet-w128-in", "convnet-d3-w32-bn-max", "convnet-d4-w64-none", "resnet18-bn", "vgg11-gn",
     "resnet10-w24-bn", "wrn16-w16-bn", "convnet-w32-in-silu", "convnet-d2-w8-none-leaky-nopool",
     "convnet-w32-bn-sigmoid-max", "alexnet", "mlp-w64", "lenet"],
)  # fmt: skip
def test_names_round_trip(name):
    assert str(nets.parse(name)) == name
    assert nets.parse(str(nets.parse(name))) == nets.parse(name)


def test_defaults_and_case():
    assert str(nets.parse("ConvNet")) == "convnet-w128-in"
    assert str(nets.parse("convnet-d3-avg")) == "convnet-d3-w128-in"
    assert (
        str(nets.parse("convnet-relu"))
        == str(nets.parse("convnet-in-relu-avg"))
        == "convnet-w128-in"
    )
    assert nets.parse("convnet-relu") == nets.parse("convnet")
    assert str(nets.parse("resnet18")) == "resnet18-in"
    assert str(nets.parse("resnet10-bn")) == "resnet10-w32-bn"
    assert str(nets.parse("wrn16")) == "wrn16-w32-in"
    assert all(nets.parse(name) for name in spec.NAMES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet-18", "resnet18-in"), ("convnet-d3-w128-im", "convnet-d3-w128-in"),
     ("convnet-d0", "convnet"), ("alexnet-bn", "alexnet"), ("zzz", "choose"), ("", "choose"),
     ("wrn16-2-bn", "wrn16-w32-bn"), ("resnet18-w32-bn", "resnet10-w32-bn")],
)  # fmt: skip
def test_unknown_names_get_a_suggestion(name, hint):
    with pytest.raises(InputError, match=f"network is {re.escape(repr(name))}.*{hint}"):
        nets.parse(name)


@pytest.mark.parametrize(
    ("size", "depth"), [(8, 2), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5), (224, 6), (1024, 6)]
)
def test_depth_follows_the_image_size(size, depth):
    assert nets.parse("convnet").at((size, 2 * size)).depth == depth
    assert nets.parse("convnet-d1").at((size, size)).depth == 1


def test_published_counts():
    network = make("convnet-d3-w128-in")
    assert parameters(network) == 320_010
    assert network.feature_dim == network.classifier.in_features == 2048
    assert parameters(make("convnet")) == 320_010
    # He et al.'s CIFAR ResNet-18 (the same number with either affine norm)
    assert parameters(make("resnet18-bn")) == parameters(make("resnet18-in")) == 11_173_962
    # Zagoruyko & Komodakis, table 4 and their repository: WRN-16-1 0.2 M, WRN-16-2 0.7 M
    assert parameters(make("wrn16-w16-bn")) == 175_066
    assert parameters(make("wrn16-w32-bn")) == 691_674
    assert parameters(make("resnet10-w64-bn")) == 4_903_242  # ResNet-18 less four blocks
    assert make("resnet10-w24-in").feature_dim == 192 and make("wrn16-w24-in").feature_dim == 96
    assert make("vgg11-bn").feature_dim == make("resnet18-in").feature_dim == 512
    assert make("alexnet").feature_dim == 192 * 4 * 4
    assert parameters(make("mlp")) == 3072 * 128 + 128 + 128 * 128 + 128 + 1290
    assert make("lenet").body[7].in_features == 16 * 5 * 5


@pytest.mark.parametrize("name", ["convnet-w8", "lenet", "alexnet", "vgg11-in"])
def test_grey_28_is_padded_to_the_32_map(name):
    grey, large = make(name, channels=1, size=28), make(name, channels=1, size=32)
    assert grey.feature_dim == large.feature_dim
    if name == "lenet":  # unpadded at 32, so 28 becomes 32 by the padding alone
        assert grey.body[7].in_features == large.body[7].in_features
    assert grey(noise(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(8, 8), (16, 16), (20, 33)])
def test_any_size_channels_and_classes(name, size):
    network = make(name, channels=2, size=size, classes=7)
    x = noise(3, 2, *size)
    features = network.features(x)
    assert features.shape == (3, network.feature_dim)
    assert torch.equal(network(x), network.classifier(features))
    assert network(x).shape == (3, 7)
    # every image reaches the features: none is lost in a norm of single pixels
    assert features.std(0).max() > 1e-4


@pytest.mark.parametrize("name", ["convnet-d4-w8", "alexnet"])
def test_vanishing_maps_are_refused(name):
    size = 8 if name.startswith("conv") else 4
    with pytest.raises(InputError, match=rf"{name}.*{size}x{size}.*use 'convnet'"):
        make(name, size=size)


@pytest.mark.parametrize("norm", ["bn", "in"])
def test_a_wide_resnet_refuses_images_of_which_single_pixels_would_be_left(norm):
    assert make(f"wrn16-w8-{norm}", size=5)(noise(2, 3, 5, 5)).shape == (2, 10)
    for size in (4, 1):
        with pytest.raises(InputError, match=rf"'wrn16-w8-{norm}'.*{size}x{size}.*use 'convnet'"):
            make(f"wrn16-w8-{norm}", size=size)


@pytest.mark.parametrize("argument", ["channels", "size", "classes"])
def test_non_positive_arguments_are_refused(argument):
    with pytest.raises(InputError, match=f"{argument} is 0"):
        make("convnet-w8", **{argument: 0})


def test_initial_distribution_is_torchs_and_global_generator_is_untouched():
    before = torch.get_rng_state()
    ours = [make("vgg11-in"), make("alexnet")]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng():
        for network, build in zip(ours, (lambda: vgg11(3, (32, 32), "in"),
                                         lambda: alexnet(3, (32, 32))), strict=True):  # fmt: skip
            torch.manual_seed(0)
            theirs = Network(*build(), 10)
            for (name, a), b in zip(network.named_parameters(), theirs.parameters(), strict=True):
                assert torch.allclose(a, b, rtol=1e-6, atol=1e-9), name


def test_same_generator_same_network():
    a, b, c = make("resnet18-bn"), make("resnet18-bn"), make("resnet18-bn", seed=1)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name
    assert not torch.equal(a.classifier.weight, c.classifier.weight)
    assert torch.equal(a.body[1].running_var, torch.ones(64))
    c.body[1].running_mean.fill_(5.0)
    nets.initialise(c, torch.Generator().manual_seed(0))
    assert all(torch.equal(v, c.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize(
    "name", ["convnet-w8", "resnet18-in", "resnet10-w8-in", "wrn16-w8-in", "vgg11-in", "lenet"]
)
def test_functional_stacked_and_copied(name):
    members = [make(name, seed, size=16) for seed in range(2)]
    x = noise(2, 2, 3, 16, 16)
    values, _ = torch.func.stack_module_state(members)
    shell = copy.deepcopy(members[0]).to("meta")
    call = torch.vmap(lambda values, x: torch.func.functional_call(shell, values, (x,)))
    together = call(values, x)
    for k, member in enumerate(members):
        assert torch.allclose(together[k], copy.deepcopy(member)(x[k]), atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-4)


def test_state_dict_loads():
    a, b = make("convnet-w8"), make("convnet-w8", seed=3)
    b.load_state_dict({k: v.clone() for k, v in a.state_dict().items()})
    x = noise(2, 3, 32, 32)
    assert torch.equal(a(x), b(x))


def test_convnet_is_the_plain_one():
    network = make("convnet-d2-w8-in", size=8)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    plain.load_state_dict(dict(zip(plain.state_dict(), network.state_dict().values(), strict=True)))
    x = noise(4, 3, 8, 8)
    assert torch.allclose(network(x), plain(x), atol=1e-5)
    assert isinstance(make("convnet-w8-max").body[3], nn.MaxPool2d)


@pytest.mark.parametrize(
    ("word", "layer"),
    [("silu", nn.SiLU()), ("gelu", nn.GELU()), ("leaky", nn.LeakyReLU(0.01)),
     ("sigmoid", nn.Sigmoid())],
)  # fmt: skip
def test_other_activations_and_no_pooling_take_their_places(word, layer):
    network, relu = (
        make(f"convnet-d2-w8-in-{word}-nopool", size=8),
        make("convnet-d2-w8-in", size=8),
    )
    for one, other in zip(network.body.parameters(), relu.body.parameters(), strict=True):
        assert torch.equal(one, other)  # the same draws
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(8, 8), layer, nn.Identity(),
        nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(8, 8), layer, nn.Flatten(),
    )  # fmt: skip
    state = network.body.state_dict()
    plain.load_state_dict(dict(zip(plain.state_dict(), state.values(), strict=True)))
    x = noise(4, 3, 8, 8)
    assert network.feature_dim == 8 * 64 and network.features(x).shape == (4, 512)
    torch.testing.assert_close(network.features(x), plain(x))


def batch_norm(x, layer, training):
    """Batch norm written out; running statistics where not in training."""
    mean, var = layer.running_mean, layer.running_var
    if training:
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    shape = (1, -1, 1, 1)
    x = (x - mean.view(shape)) / (var.view(shape) + layer.eps).sqrt()
    return x * layer.weight.view(shape) + layer.bias.view(shape)


def conv(x, weight, stride=1):
    return nn.functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["wrn16-w8-bn", "resnet10-w8-bn"])
def test_residual_networks_are_the_published_formulas(name, training):
    """Blocks written out from the papers' figures, layer by layer, in float64."""
    network = make(name, size=12).double().train(training)
    x = noise(4, 3, 12, 12).double()
    layers = [m for m in network.body.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(noise(layer.num_features)), layer.running_var.fill_(1.7)
            layer.weight.data.add_(0.3 * noise(layer.num_features, seed=2))
    wide, (stem, *rest) = name.startswith("wrn"), layers
    if wide:
        y, widths = conv(x, stem.weight), [(8, 1), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1)]
        here = 16
    else:
        y = batch_norm(conv(x, stem.weight), rest.pop(0), training).relu()
        widths, here = [(8, 1), (16, 2), (32, 2), (64, 2)], 8
    for width, stride in widths:
        projected = stride > 1 or width != here
        if wide:  # norm and ReLU first; the shortcut sees what they made
            one, up, two, down, *rest = rest
            active = batch_norm(y, one, training).relu()
            inner = batch_norm(conv(active, up.weight, stride), two, training).relu()
            y = conv(active, rest.pop(0).weight, stride) if projected else y
            y = conv(inner, down.weight) + y
        else:
            up, one, down, two, *rest = rest
            inner = batch_norm(conv(y, up.weight, stride), one, training).relu()
            inner = batch_norm(conv(inner, down.weight), two, training)
            if projected:
                y = batch_norm(conv(y, rest.pop(0).weight, stride), rest.pop(0), training)
            y = (inner + y).relu()
        here = width
    y = batch_norm(y, rest.pop(0), training).relu() if wide else y
    assert not rest
    torch.testing.assert_close(network.features(x), y.mean((2, 3)), atol=1e-12, rtol=1e-12)
