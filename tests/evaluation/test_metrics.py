import math
import statistics

import pytest
import torch

from potstill.evaluation.metrics import class_accuracy, mean_std, overall, summary


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
