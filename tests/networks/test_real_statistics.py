import pytest
import torch

from potstill.canvas import start_canvas
from potstill.data import DSA, Normalize
from potstill.match.spectral import (
    characteristic,
    segment_mean,
    spectral_distance,
    unbiased_amplitude,
)
from potstill.methods import CSDM, DM, M3D, NCFM, SDM
from potstill.methods.distribution.class_matching import Comparison
from potstill.networks import RandomNets
from potstill.networks.real_statistics import RealSide
from potstill.networks.view_draws import RealStatistics
from potstill.run import InputError, StorageError, cache
from potstill.run.parts import check_parts


class Waves(Comparison):
    """Characteristic functions at frequencies of the view's number."""

    facts = {}

    def __init__(self, run):
        self.run = run

    def frequencies(self, number, dim):
        return torch.randn(16, dim, generator=self.run.generator("w", number))

    def embed(self, features, frequencies):
        return characteristic(features, frequencies)


def side(real, run, policy="fixed", **options):
    networks = RandomNets(network="convnet-d2-w8-in").open(real, run)
    wanted = {"entries": 4, "refresh": 3, **options}
    statistics = RealStatistics(real_side=policy, **wanted)
    dsa = DSA.parse("color_crop", rule="idc")
    return RealSide(real, networks, run, statistics, dsa, Waves(run), normalize=True)


def begun(method, real, run, ipc=1):
    """The objective of a method, in front of its first step."""
    objective, _ = method.begin(real, ipc, run)
    return objective


def test_tables_of_one_blend_are_not_read_for_another(make_blobs, run, tmp_path):
    real, found = make_blobs((6, 4)), {}
    for place in ("shared", "random", "initial", "trained"):
        for blend in ("random", "initial", "trained") if place == "shared" else (place,):
            fields = {"members": 1, "pool_epochs": 2, "entries": 1, "steps": 1, "length": 1.0}
            method = SDM.budget("quick", network="convnet-d2-w8-in", blend=blend, **fields)
            view = begun(method, real, run.with_(cache=tmp_path / place)).side.at(0)
            found[place == "shared", blend] = view.table
    for blend in ("random", "initial", "trained"):
        assert torch.equal(found[True, blend], found[False, blend])
    assert not torch.allclose(found[True, "initial"], found[True, "trained"])


def test_table_equals_a_plain_per_class_loop(make_blobs, run):
    real = make_blobs((70, 9, 3))  # more than one chunk
    room = side(real, run)
    view = room.at(0)
    for label in range(3):
        own = real.of_class(label)
        with torch.no_grad():
            f = room.features(real.batch(own), real.labels[own], view)
        p = f @ view.frequencies.T
        expected = torch.cat([p.cos().mean(0), p.sin().mean(0)])
        assert torch.allclose(view.table[label], expected, atol=1e-5)


def test_cached_and_uncached_loss_are_identical(make_blobs, run):
    real = make_blobs((20, 8, 4))
    room = side(real, run)
    syn = torch.rand(6, 1, 8, 8, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def loss(table, view):
        g = room.features(syn, labels, view)
        return spectral_distance(
            table, segment_mean(characteristic(g, view.frequencies), labels, 3)
        ).sum()

    view = room.at(5)
    again = side(real, run)  # reads the stored table
    stored = again.at(5)
    assert again.built == 0 and room.built == 1
    with torch.no_grad():
        features = room.features(real.batch(torch.arange(len(real))), real.labels, view)
        fresh = segment_mean(characteristic(features, view.frequencies), real.labels, 3)
    assert torch.equal(view.table, stored.table)
    assert torch.allclose(loss(stored.table, stored), loss(fresh, view), rtol=1e-5)


def test_fixed_pool_uses_every_entry_once_per_pass(make_blobs, run):
    room = side(make_blobs((8, 4)), run, entries=5)
    for turn in range(3):
        assert sorted(room.draws.numbers(5 * turn + k)[0] for k in range(5)) == [0, 1, 2, 3, 4]


def test_rolling_window_moves_and_forgets(make_blobs, run):
    room = side(make_blobs((8, 4)), run, policy="rolling", entries=3, refresh=2)
    for step in range(20):
        number = room.at(step).number
        assert step // 2 <= number < step // 2 + 3
        assert all(step // 2 <= kept < step // 2 + 3 for kept in room._kept)


def test_fresh_draws_other_images_every_step_and_keeps_nothing(make_blobs, run):
    room = side(make_blobs((30, 4)), run, policy="fresh", batch_real=6)
    first, second = room.draws.positions(0), room.draws.positions(1)
    assert len(first) == 10 and not torch.equal(first, second)  # the small class gives all it has
    room.at(0), room.at(1)
    assert list(room._kept) == [1] and not room.cached.folder.exists()


def test_features_policy_has_fresh_frequencies_each_step(make_blobs, run):
    real = make_blobs((20, 8, 4))
    room = side(real, run, policy="features", entries=1)
    a, b = room.at(0), room.at(1)
    assert a.number == b.number and not torch.equal(a.frequencies, b.frequencies)
    bank = room.bank(0)
    exact = segment_mean(characteristic(bank.features.float(), a.frequencies), bank.labels, 3)
    assert torch.allclose(a.table, exact, atol=1e-6)


def test_damaged_entry_is_computed_again(make_blobs, run):
    real = make_blobs((8, 4))
    first = side(real, run)
    first.at(0)
    path = next(first.cached.folder.glob("*.safetensors"))
    path.write_bytes(b"broken")
    second = side(real, run)
    assert torch.equal(second.at(0).table, first.at(0).table) and second.built == 1


@pytest.mark.parametrize(
    ("field", "value"), [("real_side", "lazy"), ("entries", 0), ("refresh", 0), ("batch_real", -1)]
)
def test_bad_values(field, value):
    with pytest.raises(InputError, match=f"{field} is {value!r}"):
        CSDM.budget("quick", **{field: value}).check()
    with pytest.raises(InputError, match=f"{field} is {value!r}"):
        check_parts(DM(statistics=RealStatistics(**{field: value})))


def test_syn_side_sees_through_the_entry_network_and_augmentation(make_blobs, run):
    """Equal synthetic and real sets have distance zero only if both sides are Siamese."""
    real = make_blobs((6, 6))
    method = CSDM.budget(
        "quick",
        network="convnet-d2-w8-in",
        members=2,
        pool_epochs=1,
        frequencies=16,
        canvas="pixels",
        start="real",
        calibration=0.0,
        entries=3,
        batch_real=0,
    )
    objective = begun(method, real, run, ipc=6)
    for step in range(3):
        (term,) = objective.terms(step, objective.canvas, 2)
        assert float(term.facts["distance"].max()) < 1e-9


def test_linear_kernel_is_the_limit_of_a_long_rbf(make_blobs, run):
    """l^2 SDD -> |mean gap|^2 as the kernel length grows."""
    real = make_blobs((12, 12))
    shared = {
        "network": "convnet-d2-w8-in",
        "members": 1,
        "pool_epochs": 0,
        "canvas": "pixels",
        "start": "real",
        "power": 2,
        "calibration": 0.0,
        "entries": 1,
        "batch_real": 0,
        "match_weight": 1.0,
    }
    found = []
    for fields in ({"kernel": "rbf", "length": 30.0, "frequencies": 4096}, {"kernel": "linear"}):
        objective = begun(SDM.budget("quick", **shared, **fields), real, run, ipc=2)
        (term,) = objective.terms(0, objective.canvas, 2)
        found.append(term.facts["distance"])
    assert torch.allclose(900 * found[0], found[1], rtol=0.1)


def test_step_size_of_dm_acts_on_normalised_pixels(make_blobs, run):
    real = make_blobs((12, 12))
    method = DM.budget(
        "quick", network="convnet-d2-w8-in", entries=1, steps=1, momentum=0.0, augment="none"
    )
    syn = method(real, 1, run)
    objective = begun(method, real, run)
    canvas = start_canvas(real, 1, run.generator)
    assert torch.equal(canvas.images, objective.canvas.images)
    normal = Normalize.fit(real)
    x = normal.forward(canvas.images.detach()).requires_grad_(True)
    view = objective.side.at(0)
    network = objective.networks.at(view.number).net
    loss = (segment_mean(network.features(x), canvas.labels, 2) - view.table).square().sum()
    loss.backward()
    expected = normal.inverse(x.detach() - 1.0 * x.grad)
    assert torch.allclose(syn.images, expected, atol=1e-5)


def test_entry_plan_depends_only_on_its_number(make_blobs, run):
    rooms = side(make_blobs((8, 4)), run), side(make_blobs((8, 4)), run, entries=9)
    a, b = (room.draws.augment(7) for room in rooms)
    assert a and all(torch.equal(a[k], b[k]) for k in a)


def test_several_views_of_a_step_are_the_next_ones_of_one_order(make_blobs, run):
    one = side(make_blobs((8, 4)), run, entries=5).draws
    three = side(make_blobs((8, 4)), run, entries=5, views_per_step=3).draws
    looks = [number for step in range(5) for number in three.numbers(step)]
    assert looks == [one.numbers(step)[0] for step in range(15)]
    rolling = side(make_blobs((8, 4)), run, policy="rolling", entries=6, views_per_step=4).draws
    for step in range(0, 30, 7):
        assert all(step // 3 <= number < step // 3 + 6 for number in rolling.numbers(step))
    fresh = side(make_blobs((8, 4)), run, policy="fresh", batch_real=2, views_per_step=2).draws
    assert fresh.numbers(3) == [6, 7]


def test_each_class_may_have_its_own_augmentation(make_blobs, run):
    real = make_blobs((9, 5, 4))
    room = side(real, run, augment_per="class")
    view = room.at(0)
    assert {len(value) for value in view.augment.values()} == {3}
    assert len({tuple(row) for row in view.augment["color"].tolist()}) == 3
    for label in range(3):
        own = real.of_class(label)
        alone = {name: value[label : label + 1] for name, value in view.augment.items()}
        extractor = room.networks.at(view.number)
        with torch.no_grad():
            f = extractor.features(real.batch(own), room.dsa, alone, normalize=True)
        expected = characteristic(f, view.frequencies).mean(0)
        assert torch.allclose(view.table[label], expected, atol=1e-5)
    with pytest.raises(InputError, match="augment_per=view"):
        check_parts(CSDM(statistics=RealStatistics(real_side="features", augment_per="class")))


def test_copies_bring_small_classes_up_to_a_number(make_blobs, run):
    real = make_blobs((40, 6, 3))
    how = {"batch_real": 20, "tail_images": 12}
    draws = side(real, run, **how).draws
    positions = draws.positions(0)
    assert draws.rows == [20, 12, 12]
    assert real.labels[positions].tolist() == [0] * 20 + [1] * 12 + [2] * 12
    for label, times in ((1, 2), (2, 4)):  # all of a class before any comes again
        own = positions[real.labels[positions] == label]
        assert own.bincount(minlength=len(real))[real.of_class(label)].tolist() == [times] * (
            12 // times
        )
    whole = draws.images(0, positions, slice(None))
    pieces = [draws.images(0, positions, slice(k, k + 5)) for k in range(0, len(positions), 5)]
    assert torch.equal(whole, torch.cat(pieces))  # whatever the chunk
    plain = real.batch(positions)
    same = (whole == plain).flatten(1).all(1)
    assert same[:26].all() and same[32:35].all()  # the first of each, as they are
    assert not same[26:32].all() and not same[35:].all()
    other = draws.images(1, positions, slice(None))
    assert not torch.equal(other, whole)  # each view moves them anew
    flipped = side(real, run, **how, tail_flip=1.0).draws.images(0, positions, slice(26, 32))
    assert torch.equal(
        flipped.flip(-1),
        side(real, run, **how, tail_flip=0.0).draws.images(0, positions, slice(26, 32)),
    )


def test_views_of_other_draws_are_not_read_from_the_cache(make_blobs, run):
    real = make_blobs((9, 3))
    side(real, run).at(0)
    for other in ({"augment_per": "class"}, {"tail_images": 6}, {"tail_images": 6, "tail_flip": 0}):
        room = side(real, run, **other)
        room.at(0)
        assert room.built == 1


def test_feature_banks_stay_within_the_memory_budget(make_blobs, run, caplog, monkeypatch):
    real = make_blobs((12, 12))

    def side_of(memory_gb):
        method = M3D.budget(
            "quick",
            network="convnet-d2-w8-in",
            entries=4,
            steps=9,
            batch_real=8,
            canvas="pixels",
            start="real",
        )
        held = []
        prepare = M3D.prepare
        with monkeypatch.context() as patch:
            patch.setattr(M3D, "prepare", lambda *a: held.append(prepare(*a)) or held[-1])
            method(real, 1, run.with_(memory_gb=memory_gb))
        return held[0].side

    side_roomy = side_of(4.0)
    side_tight = side_of(5e-6)  # 2.5 kB: two banks of 2 x 8 x 32 floats do not fit
    assert len(side_roomy._kept) == 4 and side_roomy.built == 4
    assert len(side_tight._kept) == 1 and side_tight.built > 4
    assert "exceed half of memory_gb" in caplog.text
    for step in range(4):  # computed again, the same banks
        assert torch.equal(side_tight.at(step).features, side_roomy.at(step).features)


def test_tables_of_other_threads_or_policies_are_not_mistaken(make_blobs, run):
    real = make_blobs((20, 8, 4))
    one = side(real, run)
    one.at(0)
    torch.set_num_threads(2)
    try:
        assert side(real, run).cached.key != one.cached.key
    finally:
        torch.set_num_threads(1)
    banks = side(real, run, policy="features")
    banks.at(0)
    assert (
        banks.bank(0).features.dtype == torch.half
    )  # although a table of that number lies in the cache


def test_a_cache_that_cannot_be_written_only_warns(make_blobs, run, caplog, monkeypatch):
    def full(*_args):
        raise StorageError("cannot write: disk full")

    monkeypatch.setattr(cache, "save_state", full)
    assert side(make_blobs((8, 4)), run).at(0).table is not None
    assert "going on without this cache" in caplog.text


def test_cost_does_not_depend_on_who_filled_the_cache(make_blobs, run):
    real = make_blobs((20, 8, 4))
    fields = {
        "network": "convnet-d2-w8-in",
        "members": 2,
        "pool_epochs": 3,
        "entries": 2,
        "steps": 4,
    }
    seconds = []
    for _ in range(2):
        method = CSDM.budget("quick", **fields)
        made = method(real, 1, run)
        seconds.append(made.provenance["seconds_from_cache"])
        stored = method.open(real, run).pool.seconds_saved
    assert seconds[0] == 0 and seconds[1] >= round(stored, 2) > 0


def test_amplitude_correction_uses_the_images_that_were_seen(make_blobs, run):
    method = CSDM.budget(
        "quick",
        network="convnet-d2-w8-in",
        members=1,
        pool_epochs=0,
        batch_real=6,
        debias=True,
    )
    objective = begun(method, make_blobs((20, 8, 4)), run)
    comparison, view = objective.comparison, objective.side.at(0)
    assert comparison.seen.tolist() == [6, 6, 4]
    expected = unbiased_amplitude(view.table, torch.tensor([6, 6, 4]))
    assert torch.equal(comparison.target(view, 0, 3), expected)
    assert not torch.equal(expected, view.table)
    comparison.debias = False
    assert torch.equal(comparison.target(view, 1, 3), view.table[1:3])


def test_weights_that_would_be_ignored_are_refused():
    for method, fields in (
        (CSDM, {"kernel": "linear"}),
        (NCFM, {"kernel": "linear"}),
        (SDM, {"estimator": "exact", "power": 1}),
    ):
        with pytest.raises(InputError, match=r"kernel|power"):
            method.budget("quick", **fields).check()
    with pytest.raises(InputError, match="csdm has no field 'estimator'"):
        CSDM.budget("quick", estimator="exact", power=2)


def test_psi_sees_whole_tail_classes(make_blobs, run):
    real = make_blobs((300, 200, 4))
    method = NCFM.budget(
        "quick",
        network="convnet-d2-w8-in",
        members=1,
        pool_epochs=0,
        entries=1,
        frequencies=32,
        sampling_network=True,
        real_side="features",
        batch_real=0,
        steps=1,
    )
    objective = begun(method, real, run)
    list(objective.terms(0, objective.canvas, 3))
    rows = objective._real_rows(0)
    assert torch.bincount(objective.side.bank(0).labels[rows]).tolist() == [128, 128, 4]


def test_l1_kernels_get_an_l1_length(make_blobs, run):
    real = make_blobs((12, 12))
    made = {}
    for kernel in ("laplace", "laplace-l1"):
        method = SDM.budget(
            "quick", network="convnet-d2-w8-in", members=1, pool_epochs=0, kernel=kernel, entries=1
        )
        objective = begun(method, real, run, ipc=2)
        (term, *_) = objective.terms(0, objective.canvas, 2)
        made[kernel] = objective.comparison.length, float(term.facts["amplitude_real"].mean())
    assert made["laplace-l1"][0] > 2 * made["laplace"][0]
    assert made["laplace-l1"][1] > 0.3  # not only noise
