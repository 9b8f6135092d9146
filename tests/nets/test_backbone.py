"""Frozen backbones by name: whose weights, what they see, what identifies them, what is refused."""

import json
import time

import pytest
import torch

from potstill.data import Normalize
from potstill.nets import create
from potstill.nets.backbone import (
    BACKBONES,
    FILE,
    is_own_network,
    open_backbone,
    own_backbone,
    save_backbone,
    split_name,
)
from potstill.nets.frozen import content_key, frozen
from potstill.run import ArtifactError, InputError
from potstill.run.checkpoint import load_state, save_state

OWN, SHAPE = "convnet-d2-w8-bn", (3, 8, 8)
RGB = Normalize(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.25, 0.2, 0.3]))
GREY = Normalize(torch.tensor([0.4]), torch.tensor([0.2]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=3, c=3, h=8, w=8):
    return torch.rand(n, c, h, w, generator=generator(7))


def own(seed=0, name=OWN, shape=SHAPE, transform=RGB):
    return open_backbone(name, shape, generator(seed), transform)


@pytest.fixture(autouse=True)
def _global_generator_is_left_alone():
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dinov2_vitb", ("dinov2_vitb", None, False)),
        ("dinov2_vitb@196", ("dinov2_vitb", 196, False)),
        ("dinov2_vitb@196+imagenet", ("dinov2_vitb", 196, True)),
        (" clip_vitb16+imagenet ", ("clip_vitb16", None, True)),
        ("transformers:facebook/dinov2-base@64", ("transformers:facebook/dinov2-base", 64, False)),
        ("runs/a@b/backbone", ("runs/a@b/backbone", None, False)),
        ("runs/a@b/backbone@32", ("runs/a@b/backbone", 32, False)),
        ("runs/imagenet+imagenet", ("runs/imagenet", None, True)),
    ],
)
def test_names_are_split(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize("size", ["7", "4097", "-32", "big", "224x224"])
def test_a_size_that_is_no_number_of_pixels_is_refused(size):
    with pytest.raises(InputError, match=f"backbone is 'dinov2_vitb@{size}'; after @ give"):
        split_name(f"dinov2_vitb@{size}")


def test_every_short_name_can_be_split():
    for short, long in BACKBONES.items():
        assert split_name(long)[2] is False and split_name(short) == (short, None, False)


def test_own_networks_are_known_by_name():
    assert is_own_network("convnet-w64-in") and is_own_network("resnet18-bn")
    assert not is_own_network("dinov2_vitb") and not is_own_network("self:convnet")


def test_an_own_network_is_its_body_on_normalised_images():
    found = own()
    network = create(OWN, channels=3, size=8, classes=1, generator=generator(0)).eval()
    x = images()
    with torch.no_grad():
        expected = network.features((x - RGB.mean[:, None, None]) / RGB.std[:, None, None])
    torch.testing.assert_close(found.features(x), expected, atol=1e-6, rtol=0)
    assert (found.dim, found.size, found.channels) == (network.feature_dim, (8, 8), 3)
    assert found.label == OWN and len(found.key) == 16 and int(found.key, 16) >= 0


def test_a_name_without_depth_gets_the_depth_of_the_images():
    assert own(name="convnet-w8-in", shape=(3, 32, 32)).label == "convnet-d3-w8-in"
    assert own(name="convnet-w8-in", shape=(3, 16, 24)).size == (16, 24)


def test_the_seed_decides_the_weights_and_the_weights_the_key():
    first, again, other = own(0), own(0), own(1)
    x = images()
    assert torch.equal(first.features(x), again.features(x)) and first.key == again.key
    assert not torch.equal(first.features(x), other.features(x)) and first.key != other.key


def test_the_key_is_that_of_weights_buffers_constants_and_input():
    found = own()
    facts = {"size": [8, 8]}
    key = content_key(found.body, found.transform, facts)
    assert key == content_key(found.body, found.transform, facts)
    seen = {key, content_key(found.body, RGB, {"size": [8, 9]})}
    seen.add(content_key(found.body, Normalize(RGB.mean, RGB.std * 1.01), facts))
    for name, value in own().body.state_dict().items():
        changed = own().body
        with torch.no_grad():
            changed.state_dict()[name].add_(1)
        seen.add(content_key(changed, RGB, facts))
        assert value.numel()
    assert len(seen) == 3 + len(found.body.state_dict())
    assert own(transform=Normalize(RGB.mean * 0.9, RGB.std)).key != found.key


def test_nothing_in_it_learns_but_gradients_pass_to_the_images():
    found = own()
    assert not found.body.training
    assert not any(p.requires_grad for p in found.body.parameters())
    before = {n: t.clone() for n, t in found.body.state_dict().items()}
    x = images().requires_grad_()
    found.features(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(torch.equal(t, before[n]) for n, t in found.body.state_dict().items())


def test_features_of_an_image_do_not_depend_on_its_neighbours():
    found, x = own(), images(6)
    torch.testing.assert_close(found.features(x)[:2], found.features(x[:2]), atol=1e-6, rtol=0)


def test_grey_images_through_three_channels():
    found, x = own(), images(c=1)
    found.check((1, 8, 8))
    found.check((3, 8, 8))
    assert torch.equal(found.features(x), found.features(x.repeat(1, 3, 1, 1)))
    x.requires_grad_()
    assert torch.autograd.grad(found.features(x).sum(), x)[0].shape == (3, 1, 8, 8)


def test_what_it_cannot_see_is_refused():
    grey = own(shape=(1, 8, 8), transform=GREY)
    with pytest.raises(InputError, match=r"takes 1 channel\(s\), but the images have 3; load them"):
        grey.check((3, 8, 8))
    with pytest.raises(InputError, match=r"images are 9x8, but backbone 'convnet.*' takes 8x8"):
        grey.features(images(c=1, h=9))
    with pytest.raises(InputError, match="whose input is 8x8; leave out @16"):
        own(name=f"{OWN}@16")
    assert own(name=f"{OWN}@8").key == own().key


def test_a_body_that_gives_no_finite_features_is_refused():
    broken = create(OWN, channels=3, size=8, classes=1, generator=generator()).body
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="'mine', whose features of a grey image are not finite"):
        frozen("mine", broken, (8, 8), 3, RGB, "test")
    with pytest.raises(InputError, match=r"'mine', which cannot see images of 8x8 with 3 channel"):
        five = create(OWN, channels=5, size=8, classes=1, generator=generator()).body
        frozen("mine", five, (8, 8), 3, RGB, "test")


def test_constants_of_imagenet():
    plain, other = own(), own(name=f"{OWN}+imagenet")
    x = images()
    with torch.no_grad():
        expected = other.body(Normalize.published("imagenet")(x)).flatten(1)
    assert torch.equal(other.features(x), expected)
    assert other.label == f"{OWN}+imagenet" and other.key != plain.key


def test_bytes_of_weights_and_of_an_image_are_measured():
    found = own()
    assert found.nbytes == sum(t.nbytes for t in found.body.state_dict().values())
    wide = own(name="convnet-d2-w16-bn")
    assert 4 * 3 * 64 < found.image_bytes() < wide.image_bytes() < 4 * found.image_bytes()


def test_an_unknown_name_suggests_one():
    with pytest.raises(InputError, match=r"'dinov2_vitbb', neither.*did you mean 'dinov2_vitb'"):
        own(name="dinov2_vitbb")
    with pytest.raises(InputError, match=r"nonsense.* choose one of clip_rn101.*self:convnet"):
        own(name="nonsense")


# folders of ours


def saved(folder, seed=0):
    found = own(seed)
    save_backbone(found, OWN, folder, {"seed": seed})
    return found


def test_a_saved_backbone_comes_back(tmp_path):
    found = saved(tmp_path / "b")
    again = own(seed=5, name=str(tmp_path / "b"), transform=GREY)  # neither is looked at
    x = images()
    assert torch.equal(again.features(x), found.features(x))
    assert (again.key, again.label, again.dim) == (found.key, found.label, found.dim)
    assert torch.equal(again.transform.mean, RGB.mean)
    assert saved(tmp_path / "c", seed=1).key != found.key
    about = json.loads((tmp_path / "b" / "backbone.json").read_text())
    assert about["key"] == found.key and about["about"] == {"seed": 0}
    other = own(name=f"{tmp_path / 'b'}+imagenet")
    assert other.key != found.key and str(tmp_path) not in other.label


def test_a_truncated_file_is_refused(tmp_path):
    saved(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        (tmp_path / FILE).write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=rf"^.*{FILE} is damaged"):
            own(name=str(tmp_path))


def test_a_single_other_bit_of_the_weights_is_noticed(tmp_path):
    saved(tmp_path)
    content = bytearray((tmp_path / FILE).read_bytes())
    content[-1] ^= 1
    (tmp_path / FILE).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"is damaged .*its content has changed"):
        own(name=str(tmp_path))


def change(**facts):
    return lambda tensors, known: (tensors, {**known, **facts})


@pytest.mark.parametrize(
    ("tamper", "text"),
    [
        (change(key="0" * 16), r"damaged \(key .*, not 0{16}\)"),
        (change(key=None), "damaged"),
        (change(format="dataset"), "is no backbone of this version"),
        (change(version=99), "is no backbone of this version"),
        (change(network="resnet99"), r"damaged \(InputError: network is 'resnet99'"),
        (change(network="convnet-d2-w9-bn"), r"damaged \(RuntimeError"),
        (change(size=[8]), "damaged"),
        (change(size="big"), "damaged"),
        (change(size=[8, float("inf")]), "damaged"),
        (change(size=[0, 8]), "damaged"),
        (change(channels=None), "damaged"),
        (change(mean=["x"]), "damaged"),
        (change(std=[0.0, 1.0, 1.0]), "damaged"),
        (lambda tensors, known: (tensors, {"format": "potstill-backbone"}), "damaged"),
        (lambda tensors, known: (tensors, [1, 2]), "damaged"),
        (lambda tensors, known: (dict(list(tensors.items())[1:]), known), "damaged"),
        (lambda tensors, known: ({**tensors, "more": torch.ones(1)}, known), "damaged"),
    ],
)
def test_a_tampered_file_is_refused_with_a_sentence(tmp_path, tamper, text):
    saved(tmp_path)
    tensors, facts = tamper(*load_state(tmp_path / FILE))
    rewrite(tmp_path / FILE, tensors, facts)
    with pytest.raises(ArtifactError, match=text) as caught:
        own(name=str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def rewrite(path, tensors, facts):
    from safetensors.torch import save_file

    save_file(tensors, path, metadata={"potstill": json.dumps(facts)})


def test_foreign_files_and_folders_are_refused(tmp_path):
    save_state(tmp_path / FILE, {"x": torch.ones(2)}, {"key": "k", "step": 3})
    with pytest.raises(ArtifactError, match="is damaged"):
        own(name=str(tmp_path))
    rewrite(tmp_path / FILE, {"x": torch.ones(2)}, None)
    with pytest.raises(ArtifactError, match="is damaged"):
        own(name=str(tmp_path))
    (tmp_path / FILE).write_bytes(b"hello")
    with pytest.raises(ArtifactError, match="is damaged or not a potstill state"):
        own(name=str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    for content in (None, "{", "\x00"):
        if content is not None:
            (empty / "config.json").write_text(content)
        with pytest.raises(InputError, match=r"a folder without backbone\.safetensors and without"):
            own(name=str(empty))


# timm

VIT = "timm-random:vit_tiny_patch16_224@32"


def test_a_random_timm_model():
    found = own(name=VIT)
    assert (found.dim, found.size, found.channels) == (192, (32, 32), 3)
    assert found.label == "timm-random:vit_tiny_patch16_224"
    assert not any(p.requires_grad for p in found.body.parameters()) and not found.body.training
    x = images(2, 3, 32, 32).requires_grad_()
    z = found.features(x)
    assert z.shape == (2, 192) and torch.isfinite(z).all()
    slope = torch.autograd.grad(z.square().sum(), x)[0]
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0
    assert (z[0] - z[1]).abs().max() > 1e-3  # it tells images apart


def test_weights_of_a_random_timm_model_come_from_the_seed():
    name = "timm-random:test_vit@32"
    first, again, other = own(name=name), own(name=name), own(1, name=name)
    assert first.key == again.key != other.key
    matrices = [p for p in first.body.parameters() if p.ndim == 2]
    for p in matrices:
        assert p.std().item() == pytest.approx(p.shape[1] ** -0.5, rel=0.1)
    constants = own(name=f"{name}+imagenet")
    assert torch.equal(constants.transform.std, Normalize.published("imagenet").std)


def test_convolutional_timm_models_take_any_size():
    found = own(name="timm-random:test_resnet@40")
    assert found.size == (40, 40) and found.features(images(2, 3, 40, 40)).shape == (2, found.dim)
    assert own(name="timm-random:test_resnet").size == (160, 160)  # its own


def test_timm_does_not_know():
    with pytest.raises(InputError, match=r"timm has no such model; did you mean '\w*vit_\w*'"):
        own(name="timm:vit_tiny_patch16_225")


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_vit@32", "dino_vits16"])
def test_weights_that_cannot_be_had_offline_give_one_sentence_soon(name):
    began = time.monotonic()
    with pytest.raises(InputError, match=r"weights could not be obtained \(.*\); unset") as caught:
        own(name=name)
    text = str(caught.value)
    assert "\n" not in text and name.partition("@")[0] in text and "self:convnet-w64-in" in text
    assert time.monotonic() - began < 20


def test_a_folder_of_timm(tmp_path):
    import timm
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        model = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
    save_for_hf(model, tmp_path / "mine", safe_serialization=True)
    found = own(name=str(tmp_path / "mine") + "@32")
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(found.transform(x)), pre_logits=True)
    torch.testing.assert_close(found.features(x), expected, atol=1e-5, rtol=0)
    assert found.label == "mine" and found.dim == expected.shape[1]
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="weights could not be obtained") as caught:
        own(name=str(tmp_path / "mine") + "@32")
    assert "\n" not in str(caught.value)


# transformers


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def vit(transformers, folder):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.ViTModel(config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("prefix", ["transformers:", ""])
def test_a_folder_of_transformers(transformers, tmp_path, prefix):
    folder = tmp_path / "tiny"
    model = vit(transformers, folder)
    found = own(name=f"{prefix}{folder}")
    assert (found.dim, found.size, found.channels) == (16, (16, 16), 3)
    assert found.label == "transformers:tiny"
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values=Normalize.published("imagenet")(x)).pooler_output
    torch.testing.assert_close(found.features(x), expected, atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in found.body.parameters())
    assert own(name=f"{prefix}{folder}").key == found.key
    constants = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(constants))
    told = own(name=f"{prefix}{folder}")
    assert told.transform.mean.tolist() == pytest.approx([0.1, 0.2, 0.3]) and told.key != found.key


def test_a_checkpoint_without_a_pooler_gives_its_class_token(transformers, tmp_path):
    folder = tmp_path / "bare"
    config = vit(transformers, tmp_path / "other").config
    with torch.random.fork_rng(devices=[]):
        model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(folder)
    first, again = own(name=str(folder)), own(name=str(folder))
    assert first.key == again.key  # nothing random stands in for the pooler
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values=first.transform(x)).last_hidden_state[:, 0]
    torch.testing.assert_close(first.features(x), expected, atol=1e-5, rtol=0)


def test_equal_weights_that_compute_something_else_are_another_backbone():
    average, largest = own(name="convnet-d2-w8-in"), own(name="convnet-d2-w8-in-max")
    for one, other in zip(average.body.parameters(), largest.body.parameters(), strict=True):
        assert torch.equal(one, other)
    assert average.key != largest.key


def test_short_names_of_clip_are_what_openai_trained():
    for name, place in BACKBONES.items():
        if name.startswith("clip_vit"):
            assert "quickgelu" in place


def test_of_clip_only_the_images_side(transformers, tmp_path):
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2},
        vision_config={**small, "image_size": 16, "patch_size": 8},
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path / "clip")
    found = own(name=str(tmp_path / "clip"))
    assert (found.dim, found.size) == (16, (16, 16))
    x = images(2, 3, 16, 16)
    with torch.no_grad():
        expected = model.vision_model(pixel_values=found.transform(x)).pooler_output
    torch.testing.assert_close(found.features(x), expected, atol=1e-5, rtol=0)


def test_transformers_that_cannot_be_had(transformers, tmp_path):
    with pytest.raises(InputError, match="weights could not be obtained") as caught:
        own(name="transformers:nobody/nothing")
    assert "\n" not in str(caught.value)
    vit(transformers, tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="'transformers:tiny', whose weights could not") as caught:
        own(name=str(tmp_path / "tiny"))
    assert "\n" not in str(caught.value)


def test_a_size_that_transformers_cannot_take(transformers, tmp_path):
    vit(transformers, tmp_path / "tiny")
    with pytest.raises(InputError, match=r"cannot see images of 32x32 with 3 channel\(s\)"):
        own(name=f"{tmp_path / 'tiny'}@32")


def test_own_backbone_is_what_a_name_opens():
    found = own_backbone(OWN, SHAPE, generator(0), RGB)
    assert found.key == own().key
