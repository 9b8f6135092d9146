"""Characteristic functions and the weighted spectral distance against exact references."""

import pytest
import torch
from torch.autograd import gradcheck

from potstill.match.amplitude import noise_laws
from potstill.match.kernels import kernel
from potstill.match.mmd import mmd2
from potstill.match.moments import mean_distance
from potstill.match.spectral import (
    SegmentMean,
    above_noise,
    characteristic,
    sampling_noise,
    segment_mean,
    spectral_distance,
    spectral_mean,
    split,
)
from potstill.run import InputError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def functions(k=4, count=6, seed=0, dtype=torch.float64):
    """Values (k, 2T) inside the unit disc, as characteristic functions are."""
    return 0.7 * torch.tanh(normal(k, 2 * count, seed=seed, dtype=dtype))


def complex_of(a):
    return torch.complex(*a.chunk(2, dim=-1))


def naive(a, b, alpha, beta):
    """Integrand (k, T) as the papers write it; NaN gradient at b = 0."""
    a, b = complex_of(a), complex_of(b)
    amplitude = (a.abs() - b.abs()) ** 2
    phase = 2 * (a.abs() * b.abs() - (a.conj() * b).real)
    return alpha[:, None] * amplitude + beta[:, None] * phase


def test_characteristic_is_the_complex_exponential():
    x, omega = normal(5, 3), normal(4, 3, seed=1)
    expected = torch.exp(1j * (x @ omega.T))
    torch.testing.assert_close(complex_of(characteristic(x, omega)), expected)


def test_class_means_of_a_shuffled_batch_equal_a_loop():
    labels = torch.tensor([2, 0, 3, 0, 2, 2, 0, 3])  # class 1 is absent
    values = normal(8, 5)
    expected = torch.zeros(4, 5, dtype=torch.float64)
    for c in (0, 2, 3):
        expected[c] = values[labels == c].mean(0)
    torch.testing.assert_close(segment_mean(values, labels, 4), expected)
    stream = SegmentMean(4)
    for part in torch.arange(8).split(3):
        stream.add(values[part], labels[part])
    torch.testing.assert_close(stream.mean(), expected.float())
    with pytest.raises(InputError, match="empty"):
        SegmentMean(2).mean()


def test_streaming_does_not_lose_small_values_in_large_sums():
    stream, labels = SegmentMean(1), torch.zeros(20, dtype=torch.long)
    for _ in range(3000):  # a running sum in float32 would be wrong by 2e-5
        stream.add(torch.full((20, 1), 0.123), labels)
    assert stream.mean().item() == pytest.approx(0.123, rel=1e-6)


def test_spectral_mean_equals_autograd_and_its_gradient_checks():
    labels = torch.tensor([2, 0, 0, 2, 0, 3])
    x, omega = normal(6, 3).requires_grad_(), normal(5, 3, seed=1).requires_grad_()
    weight = normal(4, 10, seed=2)
    expected = segment_mean(characteristic(x, omega), labels, 4)
    got = spectral_mean(x, omega, labels, 4)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
    wanted = torch.autograd.grad((expected * weight).sum(), (x, omega))
    have = torch.autograd.grad((got * weight).sum(), (x, omega))
    torch.testing.assert_close(have, wanted, rtol=1e-12, atol=1e-14)
    assert gradcheck(lambda x, omega: spectral_mean(x, omega, labels, 4), (x, omega))
    only_x = spectral_mean(x, omega.detach(), labels, 4)
    torch.testing.assert_close(torch.autograd.grad((only_x * weight).sum(), x)[0], wanted[0])


def test_projections_stay_in_float32_under_autocast_and_for_bf16_features():
    x, omega = normal(6, 32, dtype=torch.float32), 4 * normal(5, 32, seed=1, dtype=torch.float32)
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    half = x.bfloat16().requires_grad_()
    expected = spectral_mean(half.float(), omega, labels, 2)
    with torch.autocast("cpu", torch.bfloat16):
        got = spectral_mean(half, omega, labels, 2)
        loss = got.square().sum()
        plain = characteristic(x, omega)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(plain, characteristic(x, omega))
    loss.backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.abs().sum() > 0


def test_with_many_frequencies_it_is_the_exact_kernel_distance():
    x, y = normal(30, 4), normal(10, 4, seed=1) + 0.3
    for name in ("rbf", "laplace", "cauchy-l1"):
        omega = kernel(name).frequencies(200_000, 4, seeded(2)).double()
        a, b = (characteristic(z, omega).mean(0, keepdim=True) for z in (x, y))
        got = spectral_distance(a, b, 1.0, 1.0, power=2)
        torch.testing.assert_close(got[0], mmd2(x, y, kernel(name)), rtol=0.01, atol=0)


def test_a_long_scale_leaves_the_distance_of_means():
    x, y = normal(20, 4), normal(12, 4, seed=1) + 0.5
    omega = kernel("rbf", 100.0).frequencies(200_000, 4, seeded(3)).double()
    a, b = (characteristic(z, omega).mean(0, keepdim=True) for z in (x, y))
    got = 100.0**2 * spectral_distance(a, b, 1.0, 1.0, power=2)
    expected = mean_distance(x.mean(0, keepdim=True), y.mean(0, keepdim=True))
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0)


def test_parts_add_up_and_are_the_papers():
    a, b = functions(seed=0), functions(seed=1)
    amplitude, phase = split(a, b)
    whole = complex_of(a - b).abs() ** 2
    torch.testing.assert_close(amplitude + phase, whole, rtol=1e-6, atol=0)
    one, none = torch.ones(4).double(), torch.zeros(4).double()
    torch.testing.assert_close(amplitude, naive(a, b, one, none), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(phase, naive(a, b, none, one), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_weighted_distance_equals_the_naive_form_away_from_zero(power):
    a, b = functions(seed=2), functions(seed=3)
    alpha, beta = torch.tensor([0.5, 0.8, 0.1, 0.0]), torch.tensor([0.5, 0.2, 0.9, 1.0])
    expected = naive(a, b, alpha.double(), beta.double())
    expected = (expected.sqrt() if power == 1 else expected).mean(1)
    got = spectral_distance(a, b, alpha, beta, power=power)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(spectral_distance(a, b, alpha, power=power), got)


def test_weighted_distance_lies_between_its_weights_times_the_distance():
    a, b = functions(k=50, seed=4), functions(k=50, seed=5)
    alpha = torch.rand(50, generator=seeded(6)).double()
    whole = spectral_distance(a, b, 1.0, 1.0, power=2)
    got = spectral_distance(a, b, alpha, power=2)
    low, high = torch.minimum(alpha, 1 - alpha), torch.maximum(alpha, 1 - alpha)
    assert (got >= low * whole * (1 - 1e-9)).all() and (got <= high * whole * (1 + 1e-9)).all()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("weight", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_gradient_checks_and_is_finite_at_zero(power, weight):
    a, b = functions(seed=7).requires_grad_(), functions(seed=8).requires_grad_()
    assert gradcheck(lambda a, b: spectral_distance(a, b, weight, power=power), (a, b))
    zero = torch.zeros(4, 12)
    for pair in ((a, zero), (zero, b), (zero, zero), (a, a)):
        left, right = (value.detach().float().requires_grad_() for value in pair)
        spectral_distance(left, right, weight, power=power).sum().backward()
        assert torch.isfinite(left.grad).all() and torch.isfinite(right.grad).all()


@pytest.mark.parametrize("weight", [0.2, 0.5, 0.8])
def test_gradient_at_an_empty_synthetic_side_points_to_the_real_one(weight):
    a, b = functions(seed=9), torch.zeros(4, 12, dtype=torch.float64, requires_grad=True)
    spectral_distance(a, b, weight, power=2).sum().backward()
    torch.testing.assert_close(b.grad, -2 * (1 - weight) * a / 6)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.2), (0.2, 0.8), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("gap", [1e-1, 1e-3, 1e-5])
def test_float32_is_accurate_however_close_the_sides(weights, gap):
    a = functions(k=8, count=64, seed=10, dtype=torch.float32)
    b = a + gap * normal(8, 128, seed=11, dtype=torch.float32)
    results = []
    for dtype in (torch.float32, torch.float64):
        other = b.to(dtype, copy=True).requires_grad_()
        value = spectral_distance(a.to(dtype), other, *weights, power=2)
        results.append((value, torch.autograd.grad(value.sum(), other)[0]))
    (value, grad), (exact, exact_grad) = results
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=0)
    error = (grad - exact_grad).norm() / exact_grad.norm()
    assert error < 2e-6


def test_the_ncfm_loss_is_a_special_case():
    """NCFM's matching loss transcribed: 300 x mean over t of sqrt(α A + β P), α = β = 0.5."""
    real, syn = (normal(n, 16, seed=n).relu() for n in (40, 8))
    real, syn = (torch.nn.functional.normalize(z) for z in (real, syn))
    t = normal(64, 16, seed=12)
    phi_real = (real @ t.T).cos().mean(0), (real @ t.T).sin().mean(0)
    phi_syn = (syn @ t.T).cos().mean(0), (syn @ t.T).sin().mean(0)
    norm_real = (phi_real[0] ** 2 + phi_real[1] ** 2).sqrt()
    norm_syn = (phi_syn[0] ** 2 + phi_syn[1] ** 2).sqrt()
    amplitude = (norm_real - norm_syn) ** 2
    inner = phi_real[0] * phi_syn[0] + phi_real[1] * phi_syn[1]
    phase = (2 * (norm_real * norm_syn - inner)).clamp_min(1e-12)
    expected = 300 * (0.5 * amplitude + 0.5 * phase).sqrt().mean()
    one = torch.zeros(48, dtype=torch.long)
    a, b = spectral_mean(real, t, one[:40], 1), spectral_mean(syn, t, one[:8], 1)
    got = 300 * spectral_distance(a, b, 0.5, 0.5, power=1)[0]
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("power", [1, 2])
def test_gradient_of_the_batch_equals_the_loop_over_classes(power):
    labels = torch.tensor([1, 0, 2, 1, 0, 2, 2, 1])
    omega, alpha = normal(12, 5, seed=13), torch.tensor([0.8, 0.5, 0.2]).double()
    target = functions(k=3, count=12, seed=14)
    x = normal(8, 5, seed=15).requires_grad_()
    whole = spectral_distance(target, spectral_mean(x, omega, labels, 3), alpha, power=power)
    batched = torch.autograd.grad(whole.sum(), x)[0]
    looped = torch.zeros_like(x)
    for c in range(3):
        mean = characteristic(x[labels == c], omega).mean(0, keepdim=True)
        one = spectral_distance(target[c : c + 1], mean, alpha[c], power=power)
        looped += torch.autograd.grad(one.sum(), x)[0]
    torch.testing.assert_close(batched, looped, rtol=1e-10, atol=1e-12)


def test_two_halves_of_one_class_differ_by_their_noise():
    x = torch.nn.functional.normalize(normal(6000, 16, seed=16))
    omega = kernel("rbf").frequencies(64, 16, seeded(17), orthogonal=True).double()
    whole = characteristic(x, omega).mean(0, keepdim=True)
    parts = torch.arange(6000) // 20  # 300 disjoint draws of 20
    means = segment_mean(characteristic(x, omega), parts, 300)
    got = spectral_distance(means[0::2], means[1::2], 1.0, 1.0, power=2).mean()
    expected = 2 * noise_laws(whole, torch.tensor([20])).total[0]
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0)


def test_power_is_one_or_two():
    with pytest.raises(InputError, match="power is 3"):
        spectral_distance(functions(), functions(), power=3)


def test_sampling_noise_is_the_error_of_means_of_n_images():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 200, 3, generator=draw, dtype=torch.float64)
    frequencies = torch.randn(16, 3, generator=draw, dtype=torch.float64)
    law = torch.cat(
        [(-frequencies.square().sum(1) / 2).exp(), torch.zeros(16, dtype=torch.float64)]
    )
    n = 25
    means = torch.stack([characteristic(f[:n], frequencies).mean(0) for f in features])
    error = (means - law).square()
    measured = (error[:, :16] + error[:, 16:]).mean(0)
    expected = sampling_noise(law[None], torch.tensor([n]))[0]
    assert torch.allclose(measured, expected, rtol=0.1)


def test_what_lies_within_the_noise_does_not_pull():
    a = torch.tensor([[0.6, 0.0, 0.0, 0.8], [0.6, 0.0, 0.0, 0.8]])  # (0.6, 0) and (0, 0.8)
    b = a + torch.tensor([[0.1, 0.02, 0.0, 0.0], [0.01, 0.0, 0.0, 0.01]])
    counts = torch.tensor([100, 1000])
    # noise: 0.64 / n and 0.36 / n; squared distances: 0.01, 0.0004 and 0.0001, 0.0001
    assert above_noise(a, b, counts, "none") is None
    assert above_noise(a, b, counts, "stop").tolist() == [[1.0], [0.0]]
    share = above_noise(a, b, counts, "shrink")
    assert torch.allclose(share[0], torch.tensor([0.36, 0.0]))  # 1 - 0.0064 / 0.01; 0.0036 > 0.0004
    assert share[1].tolist() == [0.0, 0.0]
    for power in (1, 2):
        x = b.clone().requires_grad_(True)
        plain = spectral_distance(a, x, 0.5, power=power)
        stopped = spectral_distance(a, x, 0.5, power=power, share=above_noise(a, b, counts, "stop"))
        (gradient,) = torch.autograd.grad(stopped.sum(), x)
        assert stopped[0] == plain[0] and stopped[1] == 0 and not gradient[1].any()
        shrunk = spectral_distance(a, x, 0.5, power=power, share=share)
        half = 0.5 * torch.tensor([0.01, 0.0004])
        kept = (half if power == 2 else half.sqrt()) * share[0]
        assert torch.allclose(shrunk[0], kept.mean(), rtol=1e-4)


def test_the_distance_of_two_feature_sets_in_one_call():
    from potstill.match.kernels import kernel
    from potstill.match.spectral import feature_distance

    draw = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(n, 5, generator=draw, dtype=torch.float64) + s for n, s in ((80, 0), (60, 1))
    )
    gram = kernel("rbf", 2.0).gram
    wanted = gram(a, a).mean() + gram(b, b).mean() - 2 * gram(a, b).mean()
    found = 2 * feature_distance(a, b, length=2.0, count=20_000)
    assert found == pytest.approx(float(wanted), rel=0.05)
    assert feature_distance(a, a) == 0 < feature_distance(a, b)
    for wrong in (a[:, :4], a[:0], a[0], a * float("nan")):
        with pytest.raises(InputError, match=r"features (have shapes|hold NaN)"):
            feature_distance(a, wrong)
