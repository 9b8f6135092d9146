"""What must hold on an NVIDIA GPU; skipped without one."""

from __future__ import annotations

import pytest
import torch

from potstill.data import Normalize
from potstill.methods import CSDM, DM, LAD, LGM, MTT, SFM
from potstill.nets import Examples, Training, create, train_many
from potstill.run import Run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
TINY = {
    "network": "convnet-d2-w16-in",
    "members": 2,
    "pool_epochs": 1,
    "entries": 2,
    "steps": 5,
    "frequencies": 64,
    "batch_real": 0,
    "experts": 2,
    "expert_epochs": 4,
    "expert_batch": 16,
    "classifier_epochs": 2,
    "student_steps": 4,
    "classifier_steps": 4,
    "span": 1,
    "start_max": 3,
    "backbone": "convnet-d2-w16-in",
    "augmentations": 2,
    "bank_views": 2,
    "noise": 0.0,  # each device has its own
}


def tiny(kind, **more):
    """A method at TINY, as far as it has those fields."""
    kinds = {k: v for k, v in more.items() if k in ("canvas", "labels", "networks")}
    known = kind.budget("quick", **kinds).fields()
    return kind.budget("quick", **{k: v for k, v in (TINY | more).items() if k in known})


def gradient(method, real, run):
    objective, _ = method.begin(real, 3, run)
    for term in objective.terms(0, objective.canvas, objective.canvas.classes):
        term.values.sum().backward()
    return objective.canvas.images.grad.cpu()


@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.999), ("bf16", 0.98)])
def test_gradient_agrees_with_the_cpu(make_blobs, run, precision, least):
    real = make_blobs((40, 20, 8), channels=3, size=16)
    method = tiny(CSDM, pool_epochs=0)  # drawn by the seed; a pool is trained anew on each device
    on_cpu = gradient(method, real, run)
    device = Run(device="cuda", precision=precision, cache=run.cache, quiet=True)
    on_gpu = gradient(method, real, device)
    assert torch.nn.functional.cosine_similarity(on_cpu.flatten(), on_gpu.flatten(), dim=0) > least


@pytest.mark.parametrize("compiled", [False, True])
def test_a_whole_run(make_blobs, run, compiled):
    real = make_blobs((40, 20, 8), channels=3, size=16)
    device = Run(device="cuda", cache=run.cache, quiet=True, compile=compiled)
    for method in (tiny(CSDM), tiny(DM)):
        assert torch.isfinite(method(real, 2, device).images).all()


def test_memory_of_a_step_does_not_grow_with_the_real_set(make_blobs, run):
    peaks = []
    for scale in (1, 8):
        real = make_blobs((400 * scale, 200 * scale), channels=3, size=32)
        device = Run(device="cuda", cache=run.cache, quiet=True)
        method = tiny(CSDM, members=1, pool_epochs=0)
        objective, _ = method.begin(real, 4, device)
        canvas = objective.canvas
        objective.side.at(0)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for term in objective.terms(0, canvas, canvas.classes):
            term.values.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 1.05 * peaks[0]


def test_stacked_students_agree_with_sequential_ones(make_blobs, run):
    real = make_blobs((12, 12, 12))
    examples = Examples(real.images.float() / 255, real.labels, Normalize.fit(real))
    training = Training(epochs=3, batch=12, lr=0.05)
    found = []
    for backend in ("sequential", "stacked"):
        nets = [
            create(
                "convnet-d2-w16-in", channels=1, size=8, classes=3, generator=run.generator("w", k)
            )
            for k in range(3)
        ]
        train_many(
            nets,
            examples,
            training,
            generators=run.generator,
            device="cuda",
            backend=backend,
            quiet=True,
        )
        found.append(torch.cat([p.detach().flatten() for net in nets for p in net.parameters()]))
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-3


@pytest.mark.parametrize("way", ["exact", "tesla"])
def test_trajectory_gradient_agrees_with_the_cpu(make_blobs, run, way):
    real = make_blobs((40, 20, 8), channels=3, size=16)
    gradients = []
    for device in ("cpu", "cuda"):
        here = Run(device=device, cache=run.cache, quiet=True)
        method = tiny(LAD, gradient=way, preprocess="normalize")
        networks = method.open(real, run)  # one set of experts for both, and one choice of images
        canvas = method.start(real, 3, networks, run).to(here.device)
        objective = method.prepare(real, canvas, networks, here)
        for term in objective.terms(0, objective.canvas, canvas.classes):
            term.values.sum().backward()
        leaves = objective.canvas.parameters() | objective.leaves()
        assert set(leaves) == {"images", "raw_lr", "logits"}
        gradients.append([leaf.grad.cpu() for leaf in leaves.values()])
    for on_cpu, on_gpu in zip(*gradients, strict=True):
        cosine = torch.nn.functional.cosine_similarity(on_cpu.flatten(), on_gpu.flatten(), dim=0)
        assert cosine > 0.999


def test_whole_trajectory_runs_with_experts_of_their_own(make_blobs, run):
    real = make_blobs((40, 20, 8), channels=3, size=16)
    device = Run(device="cuda", cache=run.cache, quiet=True)
    for method in (tiny(LAD, steps=3), tiny(MTT, steps=3)):
        assert torch.isfinite(method(real, 2, device).images).all()


def test_experts_stacked_agree_with_one_after_another(make_blobs, run):
    from potstill.nets import Sharpness

    real = make_blobs((40, 20, 8), channels=3, size=16)
    examples = Examples(real.images, real.labels, Normalize.fit(real))
    training = Training(epochs=2, batch=16, momentum=0.0, sharpness=Sharpness())
    weights = []
    for backend in ("sequential", "stacked"):
        networks = [
            create("convnet-d2-w16-in", channels=3, size=16, classes=3,
                   generator=run.generator("w", member))
            for member in range(3)
        ]  # fmt: skip
        train_many(networks, examples, training, generators=run.generator, device="cuda",
                   backend=backend, quiet=True)  # fmt: skip
        weights.append([p.detach().cpu() for net in networks for p in net.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("kind", [LGM, SFM])
@pytest.mark.parametrize("memory_gb", [4.0, 1e-6])
def test_backbone_gradient_agrees_with_the_cpu(make_blobs, run, kind, memory_gb):
    real = make_blobs((40, 20, 8), channels=3, size=16)
    gradients = []
    for device in ("cpu", "cuda"):
        here = Run(
            device=device, precision="fp32", memory_gb=memory_gb, cache=run.cache, quiet=True
        )
        objective, _ = tiny(kind, levels="one").begin(real, 3, here)
        for term in objective.terms(0, objective.canvas, objective.canvas.classes):
            term.values.backward()
        gradients.append(objective.canvas.images.grad.cpu().flatten())
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_backbone_methods_and_probes_run_with_a_backbone_of_their_own(make_blobs, run):
    from potstill.evaluation import PROBES, Inheritance, evaluate

    real, device = make_blobs((40, 20, 8), channels=3, size=16), run.with_(device="cuda")
    own = {"backbone": "self:convnet-d2-w16-bn", "backbone_epochs": 1, "noise": 0.5, "steps": 3}
    probe = PROBES["probe"].with_(epochs=5, stored_views=2, full_steps=10)
    for method in (tiny(LGM, **own), tiny(SFM, **own)):
        syn = method(real, 2, device)
        (score, other) = evaluate(
            syn, real, real, network=["same", "convnet-d2-w16-in"], protocol=probe, runs=2,
            run=device, inherit=Inheritance(kd=True),
        )  # fmt: skip
        assert 0 <= score.accuracy["mean"] <= 100 and not other.inherited["same_backbone"]
