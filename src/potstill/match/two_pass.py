"""Gradients of a loss over all images in the memory of a few of them.

If a loss depends on images only through their features, the graph of all images is never needed at
once (gradient caching): pass one computes features without a graph, the loss gives its gradient in
the features, and pass two builds the graph of one chunk at a time and sends that gradient through.
One forward more, exactly the same gradient, peak memory of one chunk for any number of classes,
images and views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from potstill.run import InputError

__all__ = ["feature_gradients"]

Leaves = Mapping[str, Tensor]
Render = Callable[[dict[str, Tensor]], Tensor]  # rows of the leaves -> their images
See = Callable[[Tensor, slice, int], Tensor]  # images, which rows they are, view -> features (r, d)


def feature_gradients(
    leaves: Leaves,
    render: Render,
    see: See,
    loss: Callable[[Tensor], Tensor],
    *,
    views: int,
    budget: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and gradient in the leaves.

    Args:
        leaves: (n, ...) each; row i of all of them makes image i.
        render: rows of the leaves to images. see: images of those rows to the features of a view;
            must give the same features whenever it is called again.
        loss: features (views, n, d) to a scalar; called once.
        views: how often each image is seen. budget: views whose graph fits into memory at once.
    """
    if budget < 1 or views < 1:
        raise InputError(f"budget is {budget} and views is {views}; use at least 1 of both")
    n = len(next(iter(leaves.values())))
    if n * views <= budget:
        return _whole(leaves, render, see, loss, views)
    chunks = [slice(first, min(n, first + budget)) for first in range(0, n, budget)]
    with torch.no_grad():
        seen = []
        for rows in chunks:
            images = render({name: leaf[rows] for name, leaf in leaves.items()})
            seen.append(torch.stack([see(images, rows, view) for view in range(views)]))
        z = torch.cat(seen, 1)
    z.requires_grad_(True)
    with torch.enable_grad():
        value = loss(z)
    (slope,) = torch.autograd.grad(value, z)
    total = {name: torch.empty_like(leaf) for name, leaf in leaves.items()}
    for rows in chunks:
        part = {name: leaf[rows].detach().requires_grad_() for name, leaf in leaves.items()}
        with torch.enable_grad():
            images = render(part)
            x = images.detach().requires_grad_()
            for view in range(views):
                torch.autograd.backward(see(x, rows, view), slope[view, rows])
        for name, grad in zip(
            part, torch.autograd.grad(images, list(part.values()), x.grad), strict=True
        ):
            total[name][rows] = grad
    return value.detach(), total


def _whole(
    leaves: Leaves, render: Render, see: See, loss: Callable[[Tensor], Tensor], views: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Everything fits: one pass."""
    part = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    with torch.enable_grad():
        images = render(part)
        rows = slice(0, len(images))
        value = loss(torch.stack([see(images, rows, view) for view in range(views)]))
    grads = torch.autograd.grad(value, list(part.values()))
    return value.detach(), dict(zip(part, grads, strict=True))
