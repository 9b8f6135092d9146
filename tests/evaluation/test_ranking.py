"""DD-Ranking's scores by hand, and a sweep of step sizes that never sees the test set."""

import math

import pytest
import torch

import potstill
from potstill.evaluation import PROBES, PROTOCOLS, advise_lr, dd_ranking, read_scores
from potstill.evaluation.ranking import _scale
from potstill.methods import Random
from potstill.reports.table_text import score_table
from potstill.run import InputError, Run


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    train, test, _ = potstill.load_pair("digits")
    train = train.long_tailed(50)
    run = Run(cache=tmp_path_factory.mktemp("cache"), quiet=True)
    folder = tmp_path_factory.mktemp("runs") / "random"
    syn = potstill.distill(Random(), train, ipc=2, out=folder, run=run)
    protocol = PROTOCOLS["quick-noflip"].with_(epochs=3)
    how = {"network": "mlp-w8", "runs": 2, "run": run, "quantized": False}
    (score,) = potstill.evaluate(syn, train, test, protocol=protocol, **how)
    bare = protocol.with_(augment="none", cutmix=0.0)
    (plain,) = potstill.evaluate(syn, train, test, protocol=bare, **how)
    return train, test, run, folder, score, plain


def with_accuracy(score, own, random, full=None, **more):
    from dataclasses import replace

    def result(percent):
        return {"accuracy": {"mean": 0.0}, "balanced": {"mean": percent}}

    changed = replace(score, balanced={"mean": own}, random=result(random), **more)
    return changed if full is None else replace(changed, full=result(full))


@pytest.mark.parametrize(("value", "result"), [(1, 1), (-1, 0), (0, 0.26894142)])
def test_the_scale_runs_from_0_to_1(value, result):
    assert _scale(value) == pytest.approx(result)  # (1 - e^-1) / (e - e^-1) at 0


def test_scores_of_shares_not_of_percent(scored):
    *_, score, plain = scored
    found = dd_ranking(
        with_accuracy(score, 60.0, 40.0, 90.0, ceiling={"accuracy": {"mean": 95.0}}),
        plain=with_accuracy(plain, 50.0, 45.0),
    )
    low = math.exp(-1)
    assert found["hlr"] == pytest.approx(0.3) and found["ior"] == pytest.approx(0.2)
    assert found["hlr_ceiling"] == pytest.approx(0.35)
    assert found["lrs"] == pytest.approx((math.exp(0.5 * 0.2 - 0.5 * 0.3) - low) / (math.e - low))
    assert found["ars"] == pytest.approx((math.exp(0.5 * 0.2 + 0.5 * 0.05) - low) / (math.e - low))
    better = dd_ranking(with_accuracy(score, 80.0, 40.0, 90.0))
    assert 0 <= found["lrs"] < better["lrs"] <= 1 and "ars" not in better


def test_soft_labels_need_a_score_under_hard_ones(scored):
    *_, score, _ = scored
    soft = with_accuracy(score, 70.0, 40.0, 90.0, label_tier="static")
    with pytest.raises(InputError, match="evaluate the set with labels=hard"):
        dd_ranking(soft)
    found = dd_ranking(soft, hard=with_accuracy(score, 60.0, 40.0))
    assert found["hlr"] == pytest.approx(0.3) and found["ior"] == pytest.approx(0.3)


def test_what_is_missing_is_said(scored):
    *_, score, plain = scored
    with pytest.raises(InputError, match="score has no 'full'"):
        dd_ranking(score)
    with pytest.raises(InputError, match="another set or network"):
        dd_ranking(score, plain=with_accuracy(plain, 1.0, 1.0, network="other"))
    with pytest.raises(InputError, match="plain is a score with augmentation"):
        dd_ranking(with_accuracy(score, 1.0, 1.0, 2.0), plain=score)
    with pytest.raises(InputError, match="weight is 2"):
        dd_ranking(score, weight=2.0)


def test_scores_say_shots_and_calibration(scored):
    train, _, _, _, score, _ = scored
    assert set(score.shots) == {"many", "medium", "few"} and train.counts[0] > 100
    low, high = min(score.calibration["values"]), max(score.calibration["values"])
    assert 0 <= low <= high <= 100 and len(score.calibration["values"]) == 2
    assert score.random["shots"] and score.random["calibration"]
    row = score_table([score])[0]
    assert {"many_shot", "few_shot", "calibration_error"} <= set(row) and "balanced" not in row


def test_balanced_accuracy_comes_first_where_the_test_is_not_even(scored):
    train, test, run, folder, *_ = scored
    kept = torch.cat([test.of_class(c)[: 20 if c else 4] for c in range(10)]).sort().values
    (score,) = potstill.evaluate(
        folder, train, test.select(kept), network="mlp-w8", runs=1, run=run, quantized=False,
        baseline=False, protocol=PROTOCOLS["quick-noflip"].with_(epochs=3),
    )  # fmt: skip
    (row,) = score_table([score])
    names = list(row)
    assert names.index("balanced") < names.index("accuracy")
    assert row["balanced"]["mean"] != row["accuracy"]["mean"]


def test_advice_is_the_best_of_a_sweep_and_is_kept_with_the_artifact(scored, monkeypatch):
    train, _, run, folder, *_ = scored
    how = {"network": "mlp-w8", "protocol": PROTOCOLS["quick-noflip"].with_(epochs=4), "run": run}
    advice = advise_lr(folder, train, rates=(1e-7, 3e-2), **how)
    assert advice["lr"] == 3e-2 and advice["accuracy"]["0.03"] > advice["accuracy"]["1e-07"]
    monkeypatch.setattr("potstill.evaluation.advice.train_students", None)
    assert advise_lr(folder, train, rates=(1e-7, 3e-2), **how) == advice  # read, not trained
    made = potstill.SyntheticSet.load(folder)
    assert made.provenance["advice"] == [advice] and advice["artifact"] == made.checksum
    with pytest.raises(TypeError):
        advise_lr(folder, train, rates=(1e-3,), **how)  # another sweep would be trained
    with pytest.raises(InputError, match="rates is 0"):
        advise_lr(folder, train, rates=(0.0,), **how)
    with pytest.raises(InputError, match="a probe; step sizes are those of students"):
        advise_lr(folder, train, protocol=PROBES["probe"])
    assert read_scores(folder) == []
