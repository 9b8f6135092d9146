import pytest
import torch
from potstill.experts.real_statistics import Entry, Eye, RealSide

from potstill.canvas import start_canvas
from potstill.data import DSA, Normalize
from potstill.match.spectral import characteristic, segment_mean, spectral_distance
from potstill.methods import CSDM, DM, NCFM, SDM
from potstill.run import InputError


def side(real, run, **options):
    eye = Eye(real, Normalize.fit(real), "convnet-d2-w8-in", None, run, normalize=True)
    draw = lambda number, dim: torch.randn(16, dim, generator=run.generator("w", number))  # noqa: E731
    wanted = {"policy": "fixed", "entries": 4, "refresh": 3, "batch_real": 0, **options}
    return RealSide(
        real,
        eye,
        run,
        dsa=DSA.parse("color_crop", rule="idc"),
        facts={},
        frequencies=draw,
        embed=lambda f, e: characteristic(f, e.frequencies),
        **wanted,
    )


def test_table_equals_a_plain_per_class_loop(make_blobs, run):
    real = make_blobs((70, 9, 3))  # more than one chunk
    room = side(real, run)
    entry = room.at(0)
    for label in range(3):
        images = real.batch(real.of_class(label))
        with torch.no_grad():
            f = room.eye.see(images, room.dsa, entry.augment)
        p = f @ entry.frequencies.T
        expected = torch.cat([p.cos().mean(0), p.sin().mean(0)])
        assert torch.allclose(entry.table[label], expected, atol=1e-5)


def test_cached_and_uncached_loss_are_identical(make_blobs, run):
    real = make_blobs((20, 8, 4))
    room = side(real, run)
    syn = torch.rand(6, 1, 8, 8, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])

    def loss(table, entry):
        g = room.eye.see(syn, room.dsa, entry.augment)
        return spectral_distance(
            table, segment_mean(characteristic(g, entry.frequencies), labels, 3)
        ).sum()

    entry = room.at(5)
    again = side(real, run)  # reads the stored table
    stored = again.at(5)
    assert again.built == 0 and room.built == 1
    with torch.no_grad():
        features = room.eye.see(real.batch(torch.arange(len(real))), room.dsa, entry.augment)
        fresh = segment_mean(characteristic(features, entry.frequencies), real.labels, 3)
    assert torch.equal(entry.table, stored.table)
    assert torch.allclose(loss(stored.table, stored), loss(fresh, entry), rtol=1e-5)


def test_fixed_pool_uses_every_entry_once_per_pass(make_blobs, run):
    room = side(make_blobs((8, 4)), run, entries=5)
    for turn in range(3):
        assert sorted(room.number_at(5 * turn + k) for k in range(5)) == [0, 1, 2, 3, 4]


def test_rolling_window_moves_and_forgets(make_blobs, run):
    room = side(make_blobs((8, 4)), run, policy="rolling", entries=3, refresh=2)
    for step in range(20):
        number = room.at(step).number
        assert step // 2 <= number < step // 2 + 3
        assert all(step // 2 <= kept < step // 2 + 3 for kept in room._kept)


def test_fresh_draws_other_images_every_step_and_keeps_nothing(make_blobs, run):
    room = side(make_blobs((30, 4)), run, policy="fresh", batch_real=6)
    first, second = room._positions(0), room._positions(1)
    assert len(first) == 10 and not torch.equal(first, second)  # the small class gives all it has
    room.at(0), room.at(1)
    assert list(room._kept) == [1] and not room.cached.folder.exists()


def test_features_policy_has_fresh_frequencies_each_step(make_blobs, run):
    real = make_blobs((20, 8, 4))
    room = side(real, run, policy="features", entries=1)
    a, b = room.at(0), room.at(1)
    assert a.number == b.number and not torch.equal(a.frequencies, b.frequencies)
    exact = segment_mean(characteristic(a.bank.float(), a.frequencies), a.bank_labels, 3)
    assert torch.allclose(a.table, exact, atol=1e-6)


def test_damaged_entry_is_computed_again(make_blobs, run):
    real = make_blobs((8, 4))
    first = side(real, run)
    first.at(0)
    path = next(first.cached.folder.glob("*.safetensors"))
    path.write_bytes(b"broken")
    second = side(real, run)
    assert torch.equal(second.at(0).table, first.at(0).table) and second.built == 1


@pytest.mark.parametrize(("field", "value"), [("policy", "lazy"), ("entries", 0), ("refresh", 0)])
def test_bad_values(make_blobs, run, field, value):
    with pytest.raises(InputError, match="real_side" if field == "policy" else field):
        side(make_blobs((8, 4)), run, **{field: value})


def test_syn_side_sees_through_the_entry_network_and_augmentation(make_blobs, run):
    """Equal synthetic and real sets have distance zero only if both sides are Siamese."""
    real = make_blobs((6, 6))
    method = CSDM.budget(
        "quick",
        network="convnet-d2-w8-in",
        networks=2,
        pool_epochs=1,
        frequencies=16,
        factor=1,
        start="real",
        calibration=0.0,
        entries=3,
        batch_real=0,
    )
    canvas = start_canvas(real, 6, run.generator, start="real")
    method.setup(real, canvas, run)
    for step in range(3):
        (term,) = method.terms(step, canvas, 2)
        assert float(term.facts["distance"].max()) < 1e-9


def test_linear_kernel_is_the_limit_of_a_long_rbf(make_blobs, run):
    """l^2 SDD -> |mean gap|^2 as the kernel length grows."""
    real = make_blobs((12, 12))
    shared = {
        "network": "convnet-d2-w8-in",
        "networks": 1,
        "pool_epochs": 0,
        "factor": 1,
        "start": "real",
        "power": 2,
        "calibration": 0.0,
        "entries": 1,
        "batch_real": 0,
        "match_weight": 1.0,
    }
    found = []
    for fields in ({"kernel": "rbf", "length": 30.0, "frequencies": 4096}, {"kernel": "linear"}):
        method = SDM.budget("quick", **shared, **fields)
        canvas = start_canvas(real, 2, run.generator)
        method.setup(real, canvas, run)
        (term,) = method.terms(0, canvas, 2)
        found.append(term.facts["distance"])
    assert torch.allclose(900 * found[0], found[1], rtol=0.1)


def test_step_size_of_dm_acts_on_normalised_pixels(make_blobs, run):
    real = make_blobs((12, 12))
    method = DM.budget(
        "quick", network="convnet-d2-w8-in", entries=1, steps=1, momentum=0.0, augment="none"
    )
    syn = method(real, 1, run)
    again = DM.budget(
        "quick", network="convnet-d2-w8-in", entries=1, steps=1, momentum=0.0, augment="none"
    )
    canvas = start_canvas(real, 1, run.generator)
    again.setup(real, canvas, run)
    normal = Normalize.fit(real)
    x = normal.forward(canvas.images.detach()).requires_grad_(True)
    entry = again.real_side_.at(0)
    loss = (segment_mean(again.eye_.features(x), canvas.labels, 2) - entry.table).square().sum()
    loss.backward()
    expected = normal.inverse(x.detach() - 1.0 * x.grad)
    assert torch.allclose(syn.images, expected, atol=1e-5)


def test_entry_plan_depends_only_on_its_number(make_blobs, run):
    a, b = side(make_blobs((8, 4)), run).plan(7), side(make_blobs((8, 4)), run, entries=9).plan(7)
    assert isinstance(a, Entry) and a.share == b.share and a.member == b.member
    assert all(torch.equal(a.augment[k], b.augment[k]) for k in a.augment)


def test_feature_banks_stay_within_the_memory_budget(make_blobs, run, caplog):
    from potstill.methods import M3D

    real = make_blobs((12, 12))

    def side_of(memory_gb):
        method = M3D.budget(
            "quick",
            network="convnet-d2-w8-in",
            entries=4,
            steps=9,
            batch_real=8,
            factor=1,
            start="real",
        )
        method(real, 1, run.with_(memory_gb=memory_gb))
        return method.real_side_

    side_roomy = side_of(4.0)
    side_tight = side_of(5e-6)  # 2.5 kB: two banks of 2 x 8 x 32 floats do not fit
    assert len(side_roomy._kept) == 4 and side_roomy.built == 4
    assert len(side_tight._kept) == 1 and side_tight.built > 4
    assert "exceed half of memory_gb" in caplog.text
    for step in range(4):  # computed again, the same banks
        assert torch.equal(side_tight.at(step).stack, side_roomy.at(step).stack)


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
    assert banks.at(0).bank is not None  # although a table of that number lies in the cache


def test_a_cache_that_cannot_be_written_only_warns(make_blobs, run, caplog, monkeypatch):
    from potstill.run import StorageError, cache

    def full(*_args):
        raise StorageError("cannot write: disk full")

    monkeypatch.setattr(cache, "save_state", full)
    assert side(make_blobs((8, 4)), run).at(0).table is not None
    assert "going on without this cache" in caplog.text


def test_cost_does_not_depend_on_who_filled_the_cache(make_blobs, run):
    real = make_blobs((20, 8, 4))
    fields = {
        "network": "convnet-d2-w8-in",
        "networks": 2,
        "pool_epochs": 3,
        "entries": 2,
        "steps": 4,
    }
    seconds = []
    for _ in range(2):
        method = CSDM.budget("quick", **fields)
        made = method(real, 1, run)
        seconds.append(made.provenance["seconds_from_cache"])
        pool = method.eye_.pool
        stored = pool.seconds_saved
    assert seconds[0] == 0 and seconds[1] >= round(stored, 2) > 0


def test_amplitude_correction_uses_the_images_that_were_seen(make_blobs, run):
    method = CSDM.budget(
        "quick", network="convnet-d2-w8-in", networks=1, pool_epochs=0, batch_real=6
    )
    canvas = start_canvas(make_blobs((20, 8, 4)), 1, run.generator)
    method.setup(make_blobs((20, 8, 4)), canvas, run)
    assert method._seen(0, 3).tolist() == [6, 6, 4]


def test_weights_that_would_be_ignored_are_refused():
    for method, fields in (
        (CSDM, {"kernel": "linear"}),
        (CSDM, {"estimator": "exact", "power": 2}),
        (NCFM, {"kernel": "linear"}),
        (SDM, {"estimator": "exact", "power": 1}),
    ):
        with pytest.raises(InputError, match=r"kernel|power"):
            method.budget("quick", **fields).check()


def test_psi_sees_whole_tail_classes(make_blobs, run):
    real = make_blobs((300, 200, 4))
    method = NCFM.budget(
        "quick",
        network="convnet-d2-w8-in",
        networks=1,
        pool_epochs=0,
        entries=1,
        frequencies=32,
        sampling_network=True,
        real_side="features",
        batch_real=0,
        steps=1,
    )
    method(real, 1, run)
    rows = method._real_rows(0)
    assert torch.bincount(method.entry_.bank_labels[rows]).tolist() == [128, 128, 4]


def test_l1_kernels_get_an_l1_length(make_blobs, run):
    real = make_blobs((12, 12))
    made = {}
    for kernel in ("laplace", "laplace-l1"):
        method = SDM.budget(
            "quick", network="convnet-d2-w8-in", networks=1, pool_epochs=0, kernel=kernel, entries=1
        )
        canvas = start_canvas(real, 2, run.generator)
        method.setup(real, canvas, run)
        (term, *_) = method.terms(0, canvas, 2)
        made[kernel] = method.length_, float(term.facts["amplitude_real"].mean())
    assert made["laplace-l1"][0] > 2 * made["laplace"][0]
    assert made["laplace-l1"][1] > 0.3  # not only noise
