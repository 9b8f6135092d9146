"""A ready-made set in plain PyTorch: load, train, score; nothing of potstill's training is used."""

import sys

import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

import potstill

syn = potstill.load_distilled("csdm-digits-lt50-ipc10")
images, labels, _, _ = syn.decoded()
inputs = syn.transform(images)
_, test, _ = potstill.load_pair("digits")
real = syn.transform(test.batch(torch.arange(len(test))))

torch.manual_seed(0)
layers = [nn.Conv2d(1, 64, 3, padding=1), nn.GroupNorm(64, 64), nn.ReLU(), nn.AvgPool2d(2)]
layers += [nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(64, 64), nn.ReLU(), nn.AvgPool2d(2)]
net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, 10))
optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
epochs = 20 if "--quick" in sys.argv else 200
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
for _ in range(epochs):
    for batch in torch.randperm(len(inputs)).split(32):
        turned = torch.eye(2, 3) + torch.randn(len(batch), 2, 3) * torch.tensor([0.15, 0.15, 0.15])
        grid = affine_grid(turned, [len(batch), *inputs.shape[1:]], align_corners=False)
        views = grid_sample(inputs[batch], grid, padding_mode="border", align_corners=False)
        optimizer.zero_grad()
        cross_entropy(net(views), labels[batch]).backward()
        optimizer.step()
    schedule.step()

with torch.no_grad():
    accuracy = 100 * (net(real).argmax(1) == test.labels).float().mean().item()
print(f"{accuracy:.1f} %; recorded: {syn.provenance['shipped']['accuracy']['mean']:.1f} %")
