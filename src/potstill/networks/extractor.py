"""One network with frozen weights through which images are seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from potstill.data import DSA
from potstill.data.transform import Transform
from potstill.nets import Network
from potstill.nets.taps import tapped
from potstill.run import Run
from potstill.run.memory import bytes_per_image

__all__ = ["FeatureExtractor"]


class FeatureExtractor:
    """Features and logits of RGB images under weights that are exchanged in place.

    Args:
        net: weights and mode are taken over; it is moved to the run's device.
        transform: from RGB 0-1 to what the network sees.

    Attributes:
        dim: features of an image.
    """

    def __init__(self, net: Network, transform: Transform, run: Run) -> None:
        self.run, self.transform, self.dim = run, transform, net.feature_dim
        self.net = net.to(run.device).eval().requires_grad_(False)
        if run.on_gpu:
            self.net.channels_last_()
        self._call: Callable[[Tensor], Tensor] = self.net.features
        if run.compile:
            self._call = torch.compile(self.net.features)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take other weights, in place so that compiled code stays valid."""
        self.net.load_state_dict(state)

    def features(
        self,
        images: Tensor,
        dsa: DSA | None = None,
        augment: Mapping[str, Tensor] | None = None,
        *,
        normalize: bool = False,
    ) -> Tensor:
        """RGB images (n, c, h, w) -> features (n, d) float32, of unit length if ``normalize``.

        ``dsa`` is applied behind the transform, with the parameters ``augment``.
        """
        found = self._passed(self._call, images, dsa, augment)
        return nn.functional.normalize(found, dim=1, eps=1e-12) if normalize else found

    def maps(
        self,
        names: Sequence[str],
        images: Tensor,
        dsa: DSA | None = None,
        augment: Mapping[str, Tensor] | None = None,
        *,
        pooled: bool = False,
    ) -> list[Tensor]:
        """Return what the layers of these names make of RGB images, (n, q) each, then features.

        Maps are their means over the pixels if ``pooled``, and flattened otherwise.
        """
        with tapped(self.net, names) as outputs:
            found = self._passed(self.net.features, images, dsa, augment)
        maps = (outputs[name].to(found.dtype) for name in names)
        return [*(m.mean((2, 3)) if pooled and m.ndim == 4 else m.flatten(1) for m in maps), found]

    def _passed(
        self,
        call: Callable[[Tensor], Tensor],
        images: Tensor,
        dsa: DSA | None,
        augment: Mapping[str, Tensor] | None,
    ) -> Tensor:
        moved = self.transform.forward(images)
        if dsa is not None:
            moved = dsa.apply(moved, dict(augment or {}))
        return self.seen(moved, call)

    def seen(self, moved: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Images (n, c, h, w) behind the transform -> features (n, d), float32 or as the images.

        ``call`` takes the place of the network's features, or of what they were compiled to.
        """
        if self.run.on_gpu:
            moved = moved.to(memory_format=torch.channels_last)
        kind, half = self.run.device.split(":")[0], self.run.precision == "bf16"
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            raw = (call or self._call)(moved)
        return raw.float() if raw.dtype == torch.bfloat16 else raw

    def logits(
        self, images: Tensor, dsa: DSA | None = None, augment: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """RGB images (n, c, h, w) -> logits (n, K)."""
        return self.net.classifier(self.features(images, dsa, augment))

    def image_bytes(self, image: Tensor) -> int:
        """Measure the bytes that autograd keeps for one RGB 0-1 image (1, c, h, w)."""

        def look(n: int) -> Tensor:
            return self.features(image.detach().repeat(n, 1, 1, 1).requires_grad_(), normalize=True)

        return bytes_per_image(look)
