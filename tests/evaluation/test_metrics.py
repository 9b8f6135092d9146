import math
import statistics

import pytest
import torch

from potstill.evaluation.metrics import (
    calibration_error,
    class_accuracy,
    mean_std,
    overall,
    shot_groups,
    summary,
    verdict,
)


def test_class_accuracy_counts_hits_per_class():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 1, 0, 3, 1, 1, 0])
    accuracy = class_accuracy(predicted, labels, 4)
    assert accuracy[[0, 1, 3]].tolist() == [50.0, 100.0, 0.0]
    assert math.isnan(accuracy[2])


def test_mean_std_is_the_sample_deviation_and_none_for_one_run():
    values = [61.0, 64.5, 58.25]
    found = mean_std(values)
    assert found["mean"] == pytest.approx(statistics.mean(values))
    assert found["std"] == pytest.approx(statistics.stdev(values))
    assert found["values"] == values
    assert mean_std([3.0]) == {"mean": 3.0, "std": None, "values": [3.0]}


def test_overall_weighs_by_test_images_and_balanced_does_not():
    matrix = torch.tensor([[100.0, 0.0], [50.0, 50.0]])
    result = summary(matrix, (30, 10), {})
    assert result["accuracy"]["values"] == [75.0, 50.0]
    assert result["balanced"]["values"] == [50.0, 50.0]
    assert result["per_class"]["mean"] == [75.0, 25.0]
    assert result["groups"] == {}


def test_overall_equals_the_share_of_right_images():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (97,), generator=generator)
    predicted = torch.randint(4, (97,), generator=generator)
    row = class_accuracy(predicted, labels, 4)
    (found,) = overall(row[None], torch.bincount(labels).tolist())
    assert found == pytest.approx(100 * (predicted == labels).double().mean().item(), abs=1e-9)


def test_groups_average_their_classes_and_keep_the_spread_over_runs():
    matrix = torch.tensor([[90.0, 70.0, 10.0], [80.0, 60.0, 30.0]])
    groups = summary(matrix, (5, 5, 5), {"head": (0, 1), "tail": (2,)})["groups"]
    assert groups["head"]["mean"] == 75.0
    assert groups["head"]["std"] == pytest.approx(statistics.stdev([80.0, 70.0]))
    assert groups["tail"] == {"mean": 20.0, "std": pytest.approx(statistics.stdev([10.0, 30.0]))}


def test_a_class_without_test_images_is_null_not_zero():
    matrix = torch.tensor([[80.0, float("nan")], [60.0, float("nan")]])
    result = summary(matrix, (10, 0), {"head": (0,), "tail": (1,)})
    assert result["accuracy"]["mean"] == result["balanced"]["mean"] == 70.0
    assert result["per_class"]["mean"] == [70.0, None]
    assert result["per_class"]["std"][1] is None
    assert list(result["groups"]) == ["head"]


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ((500, 101, 100, 20, 19, 1), {"many": (0, 1), "medium": (2, 3), "few": (4, 5)}),
        ((19, 5), {"few": (0, 1)}),
        ((1000, 1000), {"many": (0, 1)}),
    ],
)
def test_shots_are_counted_as_the_field_does(counts, groups):
    assert shot_groups(counts) == groups


def test_shots_and_calibration_stand_in_a_summary_where_they_are_known():
    matrix = torch.tensor([[90.0, 70.0, 10.0], [80.0, 60.0, 30.0]])
    found = summary(matrix, (5, 5, 5), {}, (200, 50, 3), (4.0, 6.0))
    assert {name: group["mean"] for name, group in found["shots"].items()} == {
        "many": 85.0, "medium": 65.0, "few": 20.0,
    }  # fmt: skip
    assert found["calibration"]["values"] == [4.0, 6.0]
    plain = summary(matrix, (5, 5, 5), {}, (50, 50, 50))
    assert "shots" not in plain and "calibration" not in plain


def test_calibration_error_against_the_definition():
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(300, 5, generator=draw)
    labels = torch.randint(5, (300,), generator=draw)
    predicted, sure = verdict(logits)
    assert torch.equal(predicted, logits.argmax(1))
    expected = 0.0
    for k in range(15):
        inside = [i for i in range(300) if k / 15 < sure[i].item() <= (k + 1) / 15]
        if inside:
            right = sum(float(predicted[i] == labels[i]) for i in inside) / len(inside)
            mean = sum(sure[i].item() for i in inside) / len(inside)
            expected += len(inside) / 300 * abs(right - mean)
    assert calibration_error(predicted == labels, sure) == pytest.approx(100 * expected, abs=1e-9)
    certain = torch.ones(10, dtype=torch.float64)
    assert calibration_error(torch.tensor([True] * 7 + [False] * 3), certain) == pytest.approx(30.0)
    assert calibration_error(torch.ones(10, dtype=torch.bool), certain) == 0.0
