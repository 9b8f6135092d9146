"""Where a network sees the class of an image: Grad-CAM (Selvaraju et al., ICCV 2017).

    α_k = mean over pixels of ∂z_c/∂A_k,        M = relu(sum_k α_k A_k)

A_k are the maps behind an inner layer, z_c the logit of the image's own class. M is brought to 0-1,
image by image, and enlarged.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from potstill.nets.layers import Network
from potstill.nets.taps import relu_layers, tapped
from potstill.run import InputError

__all__ = ["class_maps"]

_SIDE = 4  # pixels; coarser maps say hardly where anything is


def class_maps(network: Network, x: Tensor, labels: Tensor, name: str = "") -> Tensor:
    """Return the maps (n, 1, h, w), in 0-1, of images behind the last ReLU that has a fine one.

    All zero where nothing speaks for the class.

    Args:
        network: as it is; nothing of it changes. x: (n, c, h, w), as it takes them.
        labels: (n,) int64. name: of the network, for the sentence.

    Raises:
        InputError: no layer's maps have four pixels a side.
    """
    with tapped(network, relu_layers(network, name)) as outputs, torch.enable_grad():
        logits = network(x.detach().requires_grad_())
    fine = [a for a in outputs.values() if a.ndim == 4 and min(a.shape[2:]) >= _SIDE]
    if not fine:
        raise InputError(
            f"network is {name!r}, of whose layers none has a map of {_SIDE}x{_SIDE} pixels of "
            f"images of {x.shape[2]}x{x.shape[3]}; use a convnet of less depth"
        )
    (slopes,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), fine[-1])
    maps = (slopes.mean((2, 3), keepdim=True) * fine[-1].detach()).sum(1, keepdim=True).relu()
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    maps = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    return F.interpolate(maps, x.shape[2:], mode="bilinear", align_corners=False)
