"""Adam with one second moment for a whole leaf."""

import torch

from potstill.run.descent import Descent, pack, unpack
from potstill.run.mean_adam import MeanAdam


def gradients(steps, shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(steps, *shape, generator=draw, dtype=torch.float64)


def descended(optimizer, leaf, grads):
    for grad in grads:
        leaf.grad = grad.clone()
        optimizer.step()
    return leaf.detach().clone()


def test_of_one_pixel_it_is_adam():
    grads = gradients(20, (1,))
    ends = []
    for kind in (torch.optim.Adam, MeanAdam):
        leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        ends.append(descended(kind([leaf], lr=0.1), leaf, grads))
    assert torch.allclose(*ends, rtol=1e-9)


def test_a_class_of_twice_the_weight_moves_twice_as_far():
    grads = gradients(30, (1, 8))
    weighted = torch.cat([grads, 2 * grads], dim=1)
    leaf = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)
    far = descended(MeanAdam([leaf], lr=0.1), leaf, weighted)
    assert torch.allclose(far[1], 2 * far[0], rtol=1e-9)
    leaf = torch.zeros(2, 8, dtype=torch.float64, requires_grad=True)
    far = descended(torch.optim.Adam([leaf], lr=0.1), leaf, weighted)
    assert torch.allclose(far[1], far[0], rtol=1e-6)  # which forgets the weight


def test_a_first_step_has_the_length_of_the_step_size():
    leaf = torch.zeros(5, 7, dtype=torch.float64, requires_grad=True)
    far = descended(MeanAdam([leaf], lr=0.1), leaf, gradients(1, (5, 7)))
    assert torch.isclose(far.square().mean().sqrt(), torch.tensor(0.1).double(), rtol=1e-6)


def test_it_goes_on_where_it_was():
    grads, how = gradients(10, (3, 4)).float(), Descent(optimizer="mean_adam", lr_images=0.1)
    leaf = torch.zeros(3, 4, requires_grad=True)
    whole = descended(how.build({"images": leaf}), leaf, grads)
    leaf = torch.zeros(3, 4, requires_grad=True)
    first = how.build({"images": leaf})
    descended(first, leaf, grads[:4])
    again = leaf.detach().clone().requires_grad_(True)
    second = how.build({"images": again})
    unpack(second, {name: value.clone() for name, value in pack(first).items()})
    assert torch.equal(descended(second, again, grads[4:]), whole)
