"""DC and DSA: whose features are compared."""

import torch

from potstill.methods import DC


def test_features_are_those_of_the_steps_network_with_its_batch_norm(make_blobs, run):
    method = DC.budget(
        "quick", networks="pool", network="convnet-d2-w8-bn", members=2, pool_epochs=1
    )
    objective, _ = method.begin(make_blobs((12, 6)), 1, run)
    x, seen = torch.rand(3, 1, 8, 8), []
    for step in range(2):
        net = objective.networks.at(step).net
        seen.append(objective.matching.features(dict(net.named_parameters()), x))
        assert torch.equal(seen[-1], net.features(x))
    assert not torch.equal(*seen)
