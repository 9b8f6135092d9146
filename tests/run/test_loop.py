import json
import math

import pytest
import torch

from potstill.canvas import Canvas, canvas_spec
from potstill.run import DivergedError, InputError
from potstill.run import descent as descent_module
from potstill.run import loop as loop_module
from potstill.run.descent import Rate, Schedule
from potstill.run.fields import check_fields
from potstill.run.loop import Descent, Objective, Term, descend


class Parabola(Objective):
    """Pull every pixel of class c towards c."""

    def terms(self, step, canvas, chunk):
        for first in range(0, canvas.classes, chunk):
            images, labels = canvas.decode(first, min(canvas.classes, first + chunk))
            gap = (images - labels[:, None, None, None]).square().flatten(1).mean(1)
            yield Term("pull", gap, first, {"gap": gap})

    def load_state(self, tensors):
        assert not tensors


def canvas():
    return Canvas(torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1]), 2, canvas_spec())


def go(surface, run, problem=None, **fields):
    descent = Descent(**{"steps": 40, "lr_images": 0.05, **fields})
    return descend(
        problem or Parabola(), surface, run, descent, classes=("a", "b"), chunk=2, key="k"
    )


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_descends_to_the_minimum(run, optimizer):
    surface = canvas()
    go(surface, run, optimizer=optimizer, lr_images=0.2 if optimizer == "sgd" else 0.05)
    assert torch.allclose(surface.images[0], torch.zeros(1, 2, 2), atol=0.05)
    assert torch.allclose(surface.images[1], torch.ones(1, 2, 2), atol=0.05)


def test_sgd_step_is_the_textbook_step(run):
    surface = canvas()
    go(surface, run, optimizer="sgd", lr_images=0.1, momentum=0.0, steps=1)
    # loss of class 0 is mean((x - 0)^2) over 4 pixels: gradient 2 * 0.5 / 4
    assert torch.allclose(surface.images[0].detach(), torch.full((1, 2, 2), 0.5 - 0.1 * 0.25))


def test_schedules(monkeypatch):
    monkeypatch.setattr(descent_module, "_PATIENCE", 3)
    cosine = Schedule(Descent(steps=100, schedule="cosine"))
    assert (
        cosine.share(0) == 1
        and cosine.share(50) == pytest.approx(0.5)
        and cosine.share(100) == pytest.approx(0)
    )
    halved = Schedule(Descent(steps=2000, schedule="halved"))
    shares = [halved.share(step) for step in (0, 1199, 1200, 1599, 1600, 1799, 1800, 1999)]
    assert shares == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    plateau = Schedule(Descent(steps=100, schedule="plateau"))
    for step in range(5):
        plateau.observe(step, 1.0)
    assert plateau.share(5) == 0.5
    plateau.observe(5, 0.1)
    assert plateau.best == 0.1 and plateau.share(6) == 0.5


def test_metrics_name_every_term_and_class(run, tmp_path):
    go(canvas(), run.with_(folder=tmp_path), steps=10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(10))
    assert lines[0]["loss"]["pull"] == pytest.approx(0.5)
    assert lines[0]["classes"]["gap"] == pytest.approx([0.25, 0.25])
    assert lines[0]["classes"]["pull_pull"] == pytest.approx(
        [0.5, 0.5]
    )  # length of the gradient: 4 pixels of 0.25
    assert lines[0]["imbalance"] == {"pull": pytest.approx(1.0)}


def test_imbalance_is_the_longest_gradient_of_a_class_over_the_shortest():
    pull = {"match": torch.tensor([3.0, 0.5, 1.0]), "still": torch.tensor([1.0, 0.0])}
    assert loop_module._imbalance(pull) == {"match": 6.0}


def test_metrics_after_resume_have_each_step_once(run, tmp_path):
    class Dies(Parabola):
        def terms(self, step, canvas, chunk):
            if step == 7:
                raise KeyboardInterrupt
            return super().terms(step, canvas, chunk)

    with pytest.raises(KeyboardInterrupt):
        go(canvas(), run.with_(folder=tmp_path), problem=Dies(), steps=10)
    go(canvas(), run.with_(folder=tmp_path), steps=10)
    steps = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(10))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resume_restores_optimiser_and_schedule(run, tmp_path, optimizer, schedule):
    whole = canvas()
    go(whole, run, optimizer=optimizer, schedule=schedule, steps=20)

    class Dies(Parabola):
        def terms(self, step, canvas, chunk):
            if step == 9:
                raise KeyboardInterrupt
            return super().terms(step, canvas, chunk)

    with pytest.raises(KeyboardInterrupt):
        go(
            canvas(),
            run.with_(folder=tmp_path),
            Dies(),
            optimizer=optimizer,
            schedule=schedule,
            steps=20,
        )
    resumed = canvas()
    go(resumed, run.with_(folder=tmp_path), optimizer=optimizer, schedule=schedule, steps=20)
    assert torch.equal(resumed.images, whole.images)


def test_infinite_gradient_is_caught_before_the_step(run):
    class Bad(Parabola):
        def terms(self, step, canvas, chunk):
            images, _ = canvas.decode()
            # finite value, infinite slope at 0
            yield Term("root", (images - images.detach()).abs().sqrt().flatten(1).sum(1))

    surface = canvas()
    with pytest.raises(DivergedError, match=r"gradient of class 0 \(a\) is not finite at step 0"):
        go(surface, run, problem=Bad())
    assert torch.isfinite(surface.images).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", -1),
        ("lr_images", 0.0),
        ("lr_images", math.nan),
        ("optimizer", "lion"),
        ("momentum", 1.0),
        ("schedule", "warm"),
    ],
)
def test_bad_fields_are_named(field, value):
    with pytest.raises(InputError, match=f"{field} is {value!r}"):
        check_fields(Descent(**{field: value}))


def test_the_step_size_of_an_objective_comes_before_the_descents(run):
    problem, surface = Parabola(), canvas()
    problem.lr = 0.2
    go(surface, run, problem, optimizer="sgd", lr_images=7.0, momentum=0.0, steps=1)
    assert torch.allclose(surface.images[0].detach(), torch.full((1, 2, 2), 0.5 - 0.2 * 0.25))
    problem.lr = -1.0
    with pytest.raises(InputError, match="lr_images is -1"):
        go(canvas(), run, problem)


class Whole(Parabola):
    """One value for all classes, a leaf of its own, and a step that moves nothing."""

    def __init__(self, lr=0.1, momentum=0.5):
        self.heard = []
        self.height = torch.zeros((), requires_grad=True)
        self.rates = {"height": Rate("lr_height", lr, momentum)}

    def leaves(self):
        return {"height": self.height}

    def terms(self, step, canvas, chunk):
        value = canvas.images.square().mean() + (self.height - 1).square()
        yield Term("whole", value.detach() if step == 1 else value)

    def after(self, step, canvas):
        self.heard.append((step, self.height.item()))


def test_leaves_have_their_own_step_sizes_and_a_value_without_graph_moves_nothing(run):
    problem, surface = Whole(0.25, 0.0), canvas()
    go(surface, run, problem, optimizer="sgd", lr_images=0.1, momentum=0.0, steps=3)
    assert problem.heard == [(0, 0.5), (1, 0.5), (2, 0.75)]  # 0 + .25 * 2, no move, + .25 * 1
    assert torch.allclose(surface.images.detach(), torch.full((2, 1, 2, 2), 0.5 * 0.975**2))


def test_momentum_is_each_leafs_own(run):
    problem, surface = Heights(0.1, 0.5), canvas()
    go(surface, run, problem, optimizer="sgd", lr_images=0.1, momentum=0.0, steps=2)
    assert problem.height.item() == pytest.approx(-0.1 - 0.15)
    assert surface.images[0, 0, 0, 0].item() == pytest.approx(0.5 - 0.1 / 8 - 0.1 / 8)


class Heights(Whole):
    """Constant slopes."""

    def terms(self, step, canvas, chunk):
        yield Term("slope", canvas.images.mean() + self.height)


def test_a_rate_that_is_no_step_size_names_its_field(run):
    with pytest.raises(InputError, match="lr_height is -1"):
        Rate("lr_height", -1)
    with pytest.raises(InputError, match="momentum of lr_height is 1"):
        Rate("lr_height", 0.1, 1.0)


def test_nan_of_a_whole_term_names_no_class(run):
    problem = Whole()
    with torch.no_grad():
        problem.height.fill_(math.nan)
    with pytest.raises(DivergedError, match=r"^whole is not finite at step 0; lower lr_images"):
        go(canvas(), run, problem, steps=2)


def test_leaves_of_an_objective_are_kept_for_its_resume(run, tmp_path):
    class Dies(Whole):
        def terms(self, step, canvas, chunk):
            if step == 4:
                raise KeyboardInterrupt
            return super().terms(step, canvas, chunk)

    whole, resumed = Whole(), Whole()
    go(canvas(), run, whole, optimizer="sgd", steps=8)
    with pytest.raises(KeyboardInterrupt):
        go(canvas(), run.with_(folder=tmp_path), Dies(), optimizer="sgd", steps=8)
    go(canvas(), run.with_(folder=tmp_path), resumed, optimizer="sgd", steps=8)
    assert resumed.heard == whole.heard[4:] and resumed.height.item() == whole.height.item()


def test_a_resumed_run_goes_on_with_the_pieces_it_began_with(run, tmp_path):
    seen = []

    class Counting(Parabola):
        def terms(self, step, canvas, chunk):
            seen.append(chunk)
            yield from super().terms(step, canvas, chunk)

    folder = run.with_(folder=tmp_path)
    few = Descent(steps=3, lr_images=0.05)
    descend(Counting(), canvas(), folder, few, classes=("a", "b"), chunk=1,
            key="k")  # fmt: skip
    more = Descent(steps=5, lr_images=0.05)
    descend(Counting(), canvas(), folder, more, classes=("a", "b"), chunk=2, key="k")
    assert seen == [1] * 5
