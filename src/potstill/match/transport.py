"""Few points of equal weight that stand for many: barycentres of Wasserstein's metric (WMDD)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["barycentre", "transport_plan"]


def transport_plan(points: Tensor, centres: Tensor) -> Tensor:
    """Return the shares (k, n), float64, of k centres in n points at the least squared distance.

    Args:
        points: (n, d). centres: (k, d).

    Points weigh 1/n and centres 1/k; a row sums to one, a column to k/n. At most k - 1 points are
    divided between centres.
    """
    from scipy.optimize import linprog  # heavy to import
    from scipy.sparse import eye_array, kron, vstack

    n, k = len(points), len(centres)
    cost = torch.cdist(points.double(), centres.double()).square().cpu()
    one, scale = np.ones((1, k)), max(float(cost.max()), 1e-300)
    sums = vstack([kron(eye_array(n), one), kron(np.ones((1, n)), eye_array(k))], format="csr")
    weights = np.concatenate([np.full(n, 1 / n), np.full(k, 1 / k)])
    found = linprog((cost / scale).flatten().numpy(), A_eq=sums, b_eq=weights, method="highs-ds")
    plan = torch.from_numpy(found.x).view(n, k).T.clamp_min(0)
    return (plan / plan.sum(1, keepdim=True)).to(points.device)


def barycentre(points: Tensor, start: Tensor, rounds: int = 100) -> Tensor:
    """Return the plan (k, n) of k centres that are nearest to the points (n, d) in W2.

    The free-support barycentre of one measure under uniform weights (Cuturi and Doucet, ICML 2014):
    each centre becomes the mean of what is transported to it, from ``start`` (k, d) on, until they
    rest or for so many rounds. It is k-means whose clusters weigh alike. The centres are the plan
    times the points.
    """
    centres, points = start.double(), points.double()
    for _ in range(rounds):
        plan = transport_plan(points, centres)
        before, centres = centres, plan @ points
        if float((centres - before).square().sum()) < 1e-7:
            break
    return plan
