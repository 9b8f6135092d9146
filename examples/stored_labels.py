"""Train on stored views and a teacher's labels of them, with torch and safetensors alone.

``stored`` needs nothing of potstill: it reads the artifact's file and yields every view exactly as
the teacher saw it. Run it with ``python examples/stored_labels.py [--quick]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from safetensors.torch import load_file
from torch.nn.functional import affine_grid, grid_sample


def stored(folder: str, epoch: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield views (b, c, h, w), RGB, and labels (b, K) of a set whose images are not tiled."""
    t = load_file(f"{folder}/synthetic.safetensors")
    views = {n.removeprefix("views."): v[epoch] for n, v in t.items() if n.startswith("views.")}
    left, top, width, height = views["box"].unbind(1)
    across = torch.stack([width, 0 * width, 2 * left + width - 1], 1)
    across *= torch.where(views["flip"].bool(), -1.0, 1.0)[:, None]
    theta = torch.stack([across, torch.stack([0 * height, height, 2 * top + height - 1], 1)], 1)
    x = grid_sample(t["images"], affine_grid(theta, t["images"].shape, False), align_corners=False)
    seen = x.clone()
    for i, (y0, y1, x0, x1) in enumerate(views["patch"].tolist() if "patch" in views else []):
        seen[i, :, y0:y1, x0:x1] = x[views["partner"][i], :, y0:y1, x0:x1]
    for rows in torch.randperm(len(seen)).split(batch):
        yield seen[rows], views["values"][rows].float().softmax(1)


def main(quick: bool) -> None:
    import potstill  # the sender: distils, and labels views; only `stored` is a receiver's
    from potstill.evaluation import trained_teachers, with_view_labels

    train, test, _ = potstill.load_pair("digits")
    train, run = train.long_tailed(50), potstill.Run(quiet=True)
    syn = potstill.CATALOGUE["random"]()(train, 5, run)
    beside, epochs = potstill.PROTOCOLS["quick-noflip"], 3 if quick else 100
    how = {"beside": beside, "real": train, "transform": syn.transform, "run": run, "epochs": 5}
    teachers, _ = trained_teachers("convnet-w32-in", "balanced_softmax", **how)
    place = with_view_labels(syn, teachers, run, epochs=epochs, cutmix=0.5).save("runs/stored")

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for epoch in range(epochs):
        for seen, told in stored(str(place), epoch, batch=16):
            loss = torch.nn.functional.cross_entropy(network(syn.transform(seen)), told)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
    found = network(syn.transform(test.rows().float() / 255)).argmax(1)
    print(f"{100 * (found == test.labels).float().mean():.1f} % by a linear network")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    main(parser.parse_args().quick)
