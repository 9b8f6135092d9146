"""The pyramid against its formula, its growth, and descents that are killed around it."""

import pytest
import torch
import torch.nn.functional as F

from potstill.canvas.pyramid import PyramidCanvas, level_sizes
from potstill.run import InputError
from potstill.run import loop as loop_module
from potstill.run.loop import Descent, Objective, Term, descend

COLOURS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])


def make(run, shape=(3, 8, 8), ipc=2, **fields):
    labels = torch.arange(2).repeat_interleave(ipc)
    return PyramidCanvas(labels, 2, shape, run.generator, **fields)


def copies(levels):
    return [level.detach().clone() for level in levels]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_sizes_double_and_are_cut_to_the_image():
    assert level_sizes((32, 32)) == [(k, k) for k in (1, 2, 4, 8, 16, 32)]
    assert level_sizes((256, 256)) == [(2**k, 2**k) for k in range(9)]
    assert level_sizes((24, 40)) == [
        (1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (24, 32), (24, 40),
    ]  # fmt: skip
    assert level_sizes((28, 28))[-2:] == [(16, 16), (28, 28)]
    assert level_sizes((1, 1)) == [(1, 1)]
    assert level_sizes((24, 40), "one") == [(24, 40)]


def summed(levels, size):
    return sum(F.interpolate(level, size, mode="bilinear", align_corners=False) for level in levels)


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_decode_is_the_sum_of_levels_in_natural_colours_through_a_sigmoid(run, size):
    surface = make(run, (3, *size))
    surface.grow_(10_000)
    assert len(surface.levels) == len(level_sizes(size)) >= 4
    images, labels = surface.decode()
    total = summed(surface.levels, size)
    matrix = COLOURS / max(COLOURS[:, k].norm() for k in range(3))
    expected = torch.empty_like(total)
    for i in range(size[0]):
        for j in range(size[1]):
            expected[:, :, i, j] = total[:, :, i, j] @ matrix.T
    torch.testing.assert_close(images, torch.sigmoid(2 * expected), atol=1e-6, rtol=0)
    assert labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(surface.pictures(), images) and not surface.pictures().requires_grad


def test_the_first_principal_colour_is_nearly_grey(run):
    surface = make(run)
    with torch.no_grad():
        surface.levels[0].zero_()
        surface.levels[0][:, 0] = 0.3
    colour = surface.pictures()[0, :, 0, 0]
    assert colour.max() - colour.min() < 0.01 and colour.mean() > 0.58


@pytest.mark.parametrize("fields", [{"shape": (1, 8, 8)}, {"decorrelate": False}])
def test_grey_or_without_decorrelation_channels_are_left_alone(run, fields):
    surface = make(run, **fields)
    surface.grow_(10_000)
    expected = torch.sigmoid(2 * summed(surface.levels, (8, 8)))
    torch.testing.assert_close(surface.pictures(), expected, atol=1e-6, rtol=0)


def test_decode_of_some_classes_is_a_part_of_all(run):
    surface = make(run)
    surface.grow_(401)
    images, _ = surface.decode()
    part, part_labels = surface.decode(1, 2)
    assert torch.equal(part, images[2:]) and part_labels.tolist() == [1, 1]


def test_levels_come_at_201_401_and_so_on_as_released(run):
    surface = make(run, (3, 256, 256), ipc=1)
    grown = [step for step in range(2000) if surface.levels_at(step) > surface.levels_at(step - 1)]
    # released: (step - 1) mod 200 == 0 and step > 1, until 256; complete at 1601
    assert grown == [201, 401, 601, 801, 1001, 1201, 1401, 1601]
    assert surface.levels_at(0) == 1 and surface.levels_at(5000) == 9
    assert not surface.grow_(200) and len(surface.levels) == 1
    assert surface.grow_(201) and [x.shape[-1] for x in surface.levels] == [1, 2]
    assert not surface.grow_(400) and surface.grow_(401) and len(surface.levels) == 3


def test_every_step_may_grow(run):
    surface = make(run, grow_every=1)
    assert [surface.levels_at(step) for step in range(7)] == [1, 1, 2, 3, 4, 4, 4]


def test_growth_shrinks_old_levels_and_new_noise_has_its_share(run):
    surface = make(run, (3, 32, 32), ipc=100)
    deviations = [surface.levels[0].std().item()]
    for k, step in enumerate((201, 401, 601), start=1):
        before = copies(surface.levels)
        assert surface.grow_(step)
        for old, new in zip(before, surface.levels, strict=False):
            torch.testing.assert_close(new.detach(), old * k / (k + 1))
        assert len(surface.levels) == k + 1
        assert all(level.is_leaf and level.requires_grad for level in surface.levels)
        assert surface.levels[-1].std().item() == pytest.approx(1 / (k + 1), rel=0.05)
        deviations.append(surface.levels[0].std().item())
    # the coarsest was N(0, 1) / 1 and has lost 1/2, 2/3 and 3/4: N(0, 1) / 4
    assert deviations[-1] == pytest.approx(deviations[0] / 4)


def test_zero_growth_keeps_the_sum(run):
    surface = make(run, (3, 16, 16), growth="zero")
    smooth = []
    for step in (201, 401, 601, 801):
        before = summed(surface.levels, (16, 16)).detach()
        surface.grow_(step)
        after = summed(surface.levels, (16, 16)).detach()
        smooth.append(((after - before).norm() / before.norm()).item())
    # exact from 1 to 2 and at the last level; between them enlarging twice rounds corners off
    assert smooth[0] < 1e-6 and smooth[3] < 1e-6 and max(smooth) < 0.05
    # while noise changes it
    other = make(run, (3, 16, 16))
    before = summed(other.levels, (16, 16)).detach()
    other.grow_(201)
    assert (summed(other.levels, (16, 16)) - before).norm() / before.norm() > 0.2


def test_grey_begins_at_grey_and_grows_as_zero_does(run):
    surface, other = make(run, growth="grey"), make(run, growth="zero")
    assert torch.equal(surface.pictures(), torch.full_like(surface.pictures(), 0.5))
    with torch.no_grad():
        surface.levels[0].copy_(other.levels[0])
    surface.grow_(700)
    other.grow_(700)
    assert equal(surface.levels, other.levels)


@pytest.mark.parametrize("growth", ["noise", "zero", "grey"])
def test_arranging_twice_changes_nothing(run, growth):
    surface = make(run, growth=growth)
    assert surface.grow_(450)
    before, leaves = copies(surface.levels), list(surface.levels)
    assert not surface.grow_(450)
    assert equal(before, surface.levels)
    assert all(a is b for a, b in zip(leaves, surface.levels, strict=True))


@pytest.mark.parametrize("growth", ["noise", "zero", "grey"])
def test_arranging_at_once_equals_step_by_step(run, growth):
    once, gradual = make(run, growth=growth), make(run, growth=growth)
    once.grow_(700)
    for step in range(0, 701, 50):
        gradual.grow_(step)
    assert len(once.levels) == 4 and equal(once.levels, gradual.levels)


def test_noise_of_each_level_is_drawn_apart_and_by_seed(run):
    surface, other = make(run, ipc=50), make(run.with_(seed=1), ipc=50)
    surface.grow_(201)
    other.grow_(201)
    first, second = surface.levels[0].detach(), surface.levels[1].detach()
    assert not torch.equal(first, other.levels[0])
    assert not torch.equal(second, other.levels[1])
    start = second.flatten()[: first.numel()]
    assert abs(torch.corrcoef(torch.stack([first.flatten(), start]))[0, 1]) < 0.3


def test_pixels_are_one_level_of_full_size(run):
    surface = make(run, levels="one")
    assert [tuple(level.shape) for level in surface.levels] == [(4, 3, 8, 8)]
    assert not surface.grow_(10_000) and list(surface.parameters()) == ["level-0"]
    assert surface.levels[0].std().item() == pytest.approx(1, abs=0.15)


def test_gradients_reach_every_level(run):
    surface = make(run)
    surface.grow_(10_000)
    surface.decode()[0].square().sum().backward()
    pixels = surface.pixel_parameters()
    assert all(a is b for a, b in zip(pixels, surface.levels, strict=True))
    assert all(level.grad.abs().min() > 0 for level in surface.levels)


def test_a_moved_canvas_has_leaves_of_its_own(run):
    surface = make(run)
    surface.grow_(201)
    moved = surface.to("cpu")
    assert equal(moved.levels, surface.levels) and torch.equal(moved.pictures(), surface.pictures())
    assert moved.images is moved.levels[0] and all(x.is_leaf for x in moved.levels)
    assert moved.grow_(401) and len(surface.levels) == 2


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"levels": "two"}, "levels is 'two'; use one of all, one"),
        ({"growth": "ones"}, "growth is 'ones'; use one of noise, zero, grey"),
        ({"grow_every": 0}, "grow_every is 0; use a whole number from 1"),
    ],
)
def test_bad_fields_are_named(run, fields, text):
    with pytest.raises(InputError, match=text):
        make(run, **fields)


class Parabola(Objective):
    """Pull every pixel of class c towards a quarter, or three."""

    def terms(self, step, surface, chunk):
        images, labels = surface.decode()
        goal = 0.25 + 0.5 * labels[:, None, None, None]
        yield Term("pull", (images - goal).square().flatten(1).sum(1).view(2, -1).sum(1))

    def load_state(self, tensors):
        assert not tensors


STEPS, EVERY = 24, 5  # levels at 6, 11 and 16


def go(surface, run, **fields):
    descent = Descent(**{"steps": STEPS, "lr_images": 0.05, **fields})
    return descend(Parabola(), surface, run, descent, classes=("a", "b"), chunk=2, key="k")


class Killed(BaseException):
    pass


def killed_at(monkeypatch, at):
    original = loop_module._Step.run

    def dying(self, step, chunk, detailed):
        if step == at:
            raise Killed
        original(self, step, chunk, detailed)

    monkeypatch.setattr(loop_module._Step, "run", dying)


def test_descends_to_the_minimum_through_all_levels(run):
    surface = make(run, grow_every=EVERY)
    go(surface, run, steps=400)
    assert len(surface.levels) == 4
    goal = torch.tensor([0.25, 0.25, 0.75, 0.75])[:, None, None, None].expand(4, 3, 8, 8)
    torch.testing.assert_close(surface.pictures(), goal, atol=0.03, rtol=0)


@pytest.mark.parametrize("growth", ["noise", "zero"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_kill_around_a_growth_step_changes_no_byte(run, tmp_path, monkeypatch, growth, optimizer):
    options = {"grow_every": EVERY, "growth": growth}
    whole = make(run, **options)
    go(whole, run, optimizer=optimizer)
    assert len(whole.levels) == 4
    for at in (5, 6, 7, 11, 12, 23):  # before, at and after levels come; at the end
        folder = run.with_(folder=tmp_path / f"{at}")
        with monkeypatch.context() as patch:
            killed_at(patch, at)
            with pytest.raises(Killed):
                go(make(run, **options), folder, optimizer=optimizer)
        resumed = make(run, **options)
        go(resumed, folder, optimizer=optimizer)
        assert equal(resumed.levels, whole.levels), at


def test_a_finished_descent_is_put_back_whole(run, tmp_path):
    folder = run.with_(folder=tmp_path)
    done, again = make(run, grow_every=EVERY), make(run, grow_every=EVERY)
    go(done, folder)
    go(again, folder)
    assert equal(done.levels, again.levels) and torch.equal(done.pictures(), again.pictures())


def test_the_optimiser_starts_anew_when_a_level_comes(run):
    """Adam's first step is the step size times the sign of the gradient, whatever went before."""
    surface, moved = make(run, grow_every=EVERY), {}

    class Watching(Parabola):
        def terms(self, step, surface, chunk):
            moved["before"] = copies(surface.levels)
            yield from super().terms(step, surface, chunk)

        def after(self, step, surface):
            gaps = [(a - b).abs() for a, b in zip(surface.levels, moved["before"], strict=True)]
            moved[step] = torch.cat([gap.flatten() for gap in gaps])

    descent = Descent(steps=12, lr_images=0.05)
    descend(Watching(), surface, run, descent, classes=("a", "b"), chunk=2, key="k")
    for step in (0, 6, 11):
        torch.testing.assert_close(
            moved[step], torch.full_like(moved[step], 0.05), atol=1e-4, rtol=0
        )
    assert (moved[5] - 0.05).abs().max() > 1e-3 and (moved[7] - 0.05).abs().max() > 1e-3
