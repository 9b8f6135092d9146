"""Gradients of a loss over all images in the memory of a few of them.

If a loss depends on images only through their features, the graph of all images is never needed at
once (gradient caching): pass one computes features without a graph, the loss gives its gradient in
the features, and pass two builds the graph of one chunk at a time and sends that gradient through.
Exactly the same gradient, peak memory of one chunk (and of all features) for any number of classes,
images and views. The price is a second forward pass, but with few chunks not of what pass
one saw last: as many views as fit keep their graph from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from potstill.run import InputError

__all__ = ["feature_gradients"]

_FEW = 8  # chunks up to which a kept graph is worth being there beside all features
Leaves = Mapping[str, Tensor]
Render = Callable[[dict[str, Tensor]], Tensor]  # rows of the leaves -> their images
See = Callable[[Tensor, slice, int], Tensor]  # images, which rows they are, view -> features (r, d)
Kept = dict[int, tuple[Tensor, dict[int, Tensor]]]  # first row -> images, and features by view


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
    chunks = [slice(max(0, last - budget), last) for last in range(n, 0, -budget)][::-1]
    keeps = budget if n * views <= _FEW * budget else 0
    z, kept = _look(leaves, render, see, chunks, views, keeps)
    with torch.enable_grad():
        value = loss(z.requires_grad_())
    (slope,) = torch.autograd.grad(value, z)
    value = value.detach()
    del z  # features of all images may be larger than the graph of a chunk
    total = {name: torch.empty_like(leaf) for name, leaf in leaves.items()}
    for rows in reversed(chunks):  # what is kept goes before other graphs are built
        part = {name: leaf[rows].detach().requires_grad_() for name, leaf in leaves.items()}
        with torch.enable_grad():
            images = render(part)
            x, graphs = kept.pop(rows.start, (images.detach().requires_grad_(), {}))
            for view in reversed(range(views)):
                found = graphs.pop(view) if view in graphs else see(x, rows, view)
                torch.autograd.backward(found, slope[view, rows])
        for name, grad in zip(
            part, torch.autograd.grad(images, list(part.values()), x.grad), strict=True
        ):
            total[name][rows] = grad
    return value, total


def _look(
    leaves: Leaves, render: Render, see: See, chunks: list[slice], views: int, keep: int
) -> tuple[Tensor, Kept]:
    """Pass one: features (views, n, d), and the graphs of the last ``keep`` views."""
    kept: Kept = {}
    z, left = torch.empty(0), views * chunks[-1].stop
    for rows in chunks:
        with torch.no_grad():
            x = render({name: leaf[rows] for name, leaf in leaves.items()}).detach()
        for view in range(views):
            keeps = left <= keep
            left -= len(x)
            with torch.set_grad_enabled(keeps):
                found = see(x.requires_grad_(keeps), rows, view)
            if keeps:
                kept.setdefault(rows.start, (x, {}))[1][view] = found
            if not len(z):
                z = found.new_empty(views, chunks[-1].stop, *found.shape[1:])
            z[view, rows] = found.detach()
    return z, kept


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
