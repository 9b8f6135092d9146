import pytest
import torch

from potstill.run import InputError, Run


def test_generators_are_equal_for_equal_and_independent_for_other_purposes():
    a, b = Run(seed=3, device="cpu"), Run(seed=3, device="cpu")
    draw = lambda run, *purpose: torch.rand(4, generator=run.generator(*purpose)).tolist()  # noqa: E731
    assert draw(a, "x", 1) == draw(b, "x", 1)
    others = [
        draw(a, "x"),
        draw(a, "x", 2),
        draw(a, "y", 1),
        draw(a.with_(seed=4), "x", 1),
        draw(a, "x", 1, 1),
    ]
    assert len({tuple(o) for o in [draw(a, "x", 1), *others]}) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", -1), ("precision", "fp8"), ("memory_gb", 0), ("device", "toaster")],
)
def test_bad_values_are_named(field, value):
    with pytest.raises(InputError, match=field):
        Run(**{field: value})


def test_auto_chooses_what_is_there():
    run = Run()
    assert run.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert run.precision == ("bf16" if run.on_gpu else "fp32")


def test_bf16_is_refused_where_the_processor_lacks_it(monkeypatch):
    import potstill.run.context as context

    monkeypatch.setattr(context, "cpu_has_bf16", lambda: False)
    with pytest.raises(InputError, match="no bf16 instructions"):
        Run(device="cpu", precision="bf16")
    monkeypatch.setattr(context, "cpu_has_bf16", lambda: True)
    assert Run(device="cpu", precision="bf16").precision == "bf16"
