"""The partition: nobody shares a sample, everybody has the classes that were asked for."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from acme_fleet.config.data import IID, Data, Dirichlet, Pathological
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.datasets import Source, load_source
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.partition import distribute, raw_bytes
from acme_fleet.data.samples import Samples, Splits, stratified_split
from acme_fleet.data.shares import allocate, class_shares
from acme_fleet.errors import FleetError

TEST_IDS_FROM = 100_000


def numbered(labels, first):
    """Samples whose stored size is their number, so that each can be told from all others."""
    count = len(labels)
    return Samples(
        {"pixel_values": torch.zeros(count, 1, 2, 2)},
        torch.as_tensor(labels, dtype=torch.int64),
        torch.arange(first, first + count),
    )


def make_source(classes, each, groups=None):
    train = np.repeat(np.arange(classes), each)
    test = np.repeat(np.arange(classes), each // 2)
    return Source(
        train=numbered(train, 0),
        test=numbered(test, TEST_IDS_FROM),
        classes=[f"c{i}" for i in range(classes)],
        preprocessing=ImagePreprocessing.centred(2, 2, 1),
        train_groups=None if groups is None else np.resize(groups, len(train)),
        test_groups=None if groups is None else np.resize(groups, len(test)),
    )


def make_fleet(clusters=(2,), seed=0, partition=None, **data):
    return Fleet.model_validate(
        {
            "seed": seed,
            "data": {"partition": partition or {"scheme": "iid"}, **data},
            "clusters": [
                {
                    "name": f"edge{c}",
                    "devices": [{"name": f"d{c}{i}", "storage": 1000} for i in range(count)],
                }
                for c, count in enumerate(clusters)
            ],
        }
    )


def with_own_data(fleet, devices=(), clusters=()):
    content = fleet.model_dump()
    for cluster in content["clusters"]:
        cluster["data"] = dict(clusters).get(cluster["name"])
        for device in cluster["devices"]:
            device["data"] = dict(devices).get(device["name"])
    return Fleet.model_validate(content)


def ids(*samples):
    return [number for part in samples for number in part.stored_bytes.tolist()]


def everything(world):
    """Numbers of all train and all test samples that somebody holds."""
    holders = [world.public, *world.private.values()]
    train = ids(*(s.train for s in holders), *(s.validation for s in holders))
    return train + ids(*world.shared.values()), ids(*(s.test for s in holders))


partitions = st.one_of(
    st.just({"scheme": "iid"}),
    st.fixed_dictionaries(
        {"scheme": st.just("pathological"), "classes_per_device": st.integers(1, 4)}
    ),
    st.fixed_dictionaries({"scheme": st.just("dirichlet"), "alpha": st.floats(0.3, 100)}),
)
seeds = st.integers(0, 2**32)


# --- the pure functions -----------------------------------------------------------------------


@given(
    strata=st.lists(st.integers(0, 5), max_size=80).map(lambda s: np.array(s, dtype=int)),
    share=st.floats(0.01, 0.99),
    seed=seeds,
)
def test_a_split_is_in_proportion_in_every_stratum_and_in_all(strata, share, seed):
    left, taken = stratified_split(strata, share, np.random.default_rng(seed))
    assert sorted([*left, *taken]) == list(range(len(strata)))
    if len(strata) > 1:
        assert min(len(left), len(taken)) >= 1
        share = min(max(share, 1 / len(strata)), 1 - 1 / len(strata))
    assert abs(len(taken) - share * len(strata)) < 1 + 1e-9
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        assert abs(np.isin(members, taken).sum() - share * len(members)) < 1 + 1e-9


@given(
    labels=st.lists(st.integers(0, 3), max_size=80).map(lambda x: np.array(x, dtype=int)),
    shares=st.lists(
        st.lists(st.floats(0, 1, allow_subnormal=False), min_size=4, max_size=4),
        min_size=1,
        max_size=6,
    ),
    seed=seeds,
)
def test_every_sample_goes_to_one_holder_by_its_share(labels, shares, seed):
    shares = np.array(shares)
    total = shares.sum(axis=0)
    shares = shares / np.where(total > 0, total, 1)
    parts = allocate(labels, shares, np.random.default_rng(seed))
    held = np.concatenate(parts)
    assert len(np.unique(held)) == len(held)
    assert set(held) == set(np.flatnonzero(total[labels] > 0))
    for part, row in zip(parts, shares, strict=True):
        counts = np.bincount(labels[part], minlength=4)
        assert np.all(np.abs(counts - row * np.bincount(labels, minlength=4)) < 1 + 1e-9)
        assert np.all(counts[row == 0] == 0)


def test_rounding_favours_nobody():
    generator = np.random.default_rng(0)
    labels, shares = np.zeros(4, dtype=int), np.full((3, 1), 1 / 3)
    counts = [[len(part) for part in allocate(labels, shares, generator)] for _ in range(2000)]
    np.testing.assert_allclose(np.mean(counts, axis=0), 4 / 3, atol=0.05)


@given(
    scheme=st.one_of(
        st.just(IID()),
        st.builds(
            Pathological,
            scheme=st.just("pathological"),
            classes_per_device=st.integers(1, 5),
        ),
        st.builds(Dirichlet, scheme=st.just("dirichlet"), alpha=st.floats(1e-3, 1e3)),
    ),
    devices=st.integers(1, 12),
    classes=st.integers(5, 9),
    seed=seeds,
)
@example(scheme=Dirichlet(scheme="dirichlet", alpha=0.001), devices=1, classes=5, seed=1)
def test_shares_of_a_class_sum_to_one(scheme, devices, classes, seed):
    names = [str(i) for i in range(classes)]
    shares = class_shares(scheme, devices, names, np.random.default_rng(seed))
    assert shares.shape == (devices, classes)
    assert np.all(shares >= 0)
    if isinstance(scheme, Pathological):
        each = scheme.classes_per_device or 0
        holders = (shares > 0).sum(axis=0)
        assert np.all((shares > 0).sum(axis=1) == each)
        assert holders.max() - holders.min() <= 1  # so everyone's turn comes before a second one
        assert (holders > 0).sum() == min(classes, devices * each)
        shares = shares[:, holders > 0]
    np.testing.assert_allclose(shares.sum(axis=0), 1)


def test_alpha_orders_the_heterogeneity():
    names = [str(i) for i in range(10)]

    def largest_share(alpha):
        scheme = Dirichlet(scheme="dirichlet", alpha=alpha)
        shares = class_shares(scheme, 20, names, np.random.default_rng(0))
        return (shares / shares.sum(axis=1, keepdims=True)).max(axis=1).mean()

    assert largest_share(0.05) > 2 * largest_share(1) > 2 * largest_share(1000)
    assert largest_share(1000) == pytest.approx(0.1, abs=0.02)


# --- the world --------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    partition=partitions,
    clusters=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    public=st.floats(0.1, 0.7),
    edge_share=st.floats(0.05, 0.5),
    seed=seeds,
)
def test_nobody_shares_a_sample_and_none_is_lost(partition, clusters, public, edge_share, seed):
    source = make_source(classes=4, each=60)
    fleet = make_fleet(clusters, seed, partition, public=public, edge_share=edge_share)
    try:
        world = distribute(fleet, source)
    except FleetError as error:
        assert "samples" in str(error)  # noqa: PT017 - a device that the draw left empty
        reject()
    train, test = everything(world)
    assert len(set(train)) == len(train)
    assert len(set(test)) == len(test)
    assert max(train) < TEST_IDS_FROM <= min(test)
    held = 4 if partition["scheme"] != "pathological" else partition["classes_per_device"]
    if held * sum(clusters) >= 4:
        assert sorted(train) == ids(source.train)
        assert sorted(test) == ids(source.test)
    cloud = len(world.public.train) + len(world.public.validation)
    assert abs(cloud - public * len(source.train)) < 1
    for cluster in fleet.clusters:
        devices = [world.private[device.name] for device in cluster.devices]
        size = sum(len(splits.train) + len(splits.validation) for splits in devices)
        # each device's part is rounded, and holds one sample at least
        assert abs(len(world.shared[cluster.name]) - edge_share * size) < 2 * len(devices)


def test_a_device_is_tested_on_its_own_distribution():
    partition = {"scheme": "dirichlet", "alpha": 0.5}
    world = distribute(make_fleet((4,), 0, partition), make_source(classes=5, each=400))
    for splits in world.private.values():
        trained, tested = (
            torch.bincount(part.labels, minlength=5).double() / len(part)
            for part in (splits.train, splits.test)
        )
        assert (trained - tested).abs().max() < 0.05


def test_an_edge_server_has_the_distribution_of_its_devices():
    partition = {"scheme": "pathological", "classes": [["c0"], ["c1"], ["c2"], ["c3", "c1"]]}
    world = distribute(make_fleet((2, 2), 0, partition), make_source(classes=4, each=80))
    assert set(world.shared["edge0"].labels.tolist()) == {0, 1}
    assert set(world.shared["edge1"].labels.tolist()) == {1, 2, 3}


def test_the_papers_figure_ten_three_devices_alike_and_two_others():
    one, other = ["c0", "c1", "c2"], ["c3", "c4"]
    partition = {"scheme": "pathological", "classes": [one, one, one, other, other]}
    world = distribute(make_fleet((5, 5), 0, partition), make_source(classes=5, each=200))
    for cluster in "01":
        held = [set(world.private[f"d{cluster}{i}"].test.labels.tolist()) for i in range(5)]
        assert held == [{0, 1, 2}] * 3 + [{3, 4}] * 2


@pytest.mark.parametrize(
    "partition",
    [
        {"scheme": "iid"},
        {"scheme": "dirichlet", "alpha": 1.0},
        {"scheme": "pathological", "classes_per_device": 2},
    ],
    ids=lambda partition: partition["scheme"],
)
def test_the_seed_decides_and_nothing_else_does(partition):
    source = make_source(classes=4, each=60)

    def held(seed):
        world = distribute(make_fleet((2, 2), seed, partition), source)
        splits = [world.public, *world.private.values()]
        return [ids(s.train, s.validation, s.test) for s in splits]

    torch_state = torch.get_rng_state()
    first = held(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    torch.manual_seed(1)
    assert held(3) == first
    assert held(4) != first


def test_a_device_for_each_value_of_a_column():
    source = make_source(classes=4, each=60, groups=np.array([30, 4, 100]))
    partition = {"scheme": "natural", "column": "who"}
    world = distribute(make_fleet((2,), 0, partition), source)
    whose = dict(zip(ids(source.train), source.train_groups, strict=True))
    whose |= dict(zip(ids(source.test), source.test_groups, strict=True))
    for name, value in [("d00", 4), ("d01", 30)]:  # numbers are sorted as numbers
        splits = world.private[name]
        assert {whose[i] for i in ids(splits.train, splits.validation, splits.test)} == {value}
    assert {whose[i] for i in ids(world.shared["edge0"])} == {4, 30}
    train, _ = everything(world)
    assert len(set(train)) == len(train)
    with pytest.raises(FleetError, match="'who' has 3 values for 4 devices"):
        distribute(make_fleet((4,), 0, partition), source)
    with pytest.raises(FleetError, match="no column 'who'"):
        distribute(make_fleet((2,), 0, partition), make_source(classes=4, each=60))


def test_devices_that_are_named_as_owners_have_their_samples():
    source = make_source(classes=4, each=60, groups=np.array(["d01", "d00", "other"]))
    partition = {"scheme": "natural", "column": "who"}
    world = distribute(make_fleet((2,), 0, partition), source)
    assert world.owners == {"d00": "d00", "d01": "d01"}
    whose = dict(zip(ids(source.train), source.train_groups, strict=True))
    for name in world.owners:
        assert {whose[i] for i in ids(world.private[name].train)} == {name}
    source = make_source(classes=4, each=60, groups=np.array(["d01", "a", "b"]))
    with pytest.raises(FleetError, match="d01 is named as a value of column 'who', and d00 is not"):
        distribute(make_fleet((2,), 0, partition), source)


def test_a_natural_partition_from_a_file(tmp_path):
    generator = np.random.default_rng(0)
    who = np.array(["ann", "bob"] * 60)
    images = generator.integers(0, 100, (120, 4, 4), dtype=np.uint8)
    images[who == "bob"] += 100
    labels = np.repeat([0, 1, 2], 40)
    np.savez(tmp_path / "a.npz", images=images, labels=labels, who=who)
    partition = {"scheme": "natural", "column": "who"}
    fleet = make_fleet((2,), 0, partition, source="arrays", train=tmp_path / "a.npz")
    world = distribute(fleet, load_source(fleet.data))
    assert world.private["d00"].test.inputs["pixel_values"].max() < 100 / 127.5 - 1
    assert world.private["d01"].test.inputs["pixel_values"].min() >= 100 / 127.5 - 1


def test_raw_bytes_counts_train_and_validation():
    parts = [numbered([0, 0], first) for first in (10, 20, 40)]
    assert raw_bytes(Splits(*parts)) == 10 + 11 + 20 + 21


def test_digits_are_shared_out_without_overlap():
    fleet = make_fleet((3, 2), 1, {"scheme": "pathological", "classes_per_device": 3})
    source = load_source(Data())
    world = distribute(fleet, source)
    assert world.classes == source.classes
    assert world.preprocessing == source.preprocessing
    train = [world.public, *world.private.values()]
    pixels = torch.cat(
        [
            *(part.inputs["pixel_values"] for s in train for part in (s.train, s.validation)),
            *(part.inputs["pixel_values"] for part in world.shared.values()),
        ]
    )
    assert len(pixels) == len(source.train)
    assert len(pixels.unique(dim=0)) == len(source.train.inputs["pixel_values"].unique(dim=0))


# --- data of a device's own -------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """A file of 40 samples of classes c2 and c3, every pixel 255."""
    path = tmp_path / "own.npz"
    names = np.array(["c3", "c2"])
    np.savez(
        path,
        images=np.full((40, 2, 2), 255, np.uint8),
        labels=np.arange(40) % 2,
        label_names=names,
    )
    return path


def test_a_device_keeps_its_own_data(own):
    source = make_source(classes=4, each=60)
    fleet = with_own_data(make_fleet((3,)), devices={"d01": own})
    world = distribute(fleet, source)
    mine = world.private["d01"]
    assert [len(part) for part in (mine.train, mine.validation, mine.test)] == [24, 6, 10]
    assert all(torch.all(p.inputs["pixel_values"] == 1) for p in (mine.train, mine.test))
    assert set(mine.train.labels.tolist()) == {2, 3}
    assert raw_bytes(mine) == 30 * 4
    others = [world.public, world.private["d00"], world.private["d02"]]
    train = ids(*(s.train for s in others), *(s.validation for s in others))
    assert sorted(train + ids(world.shared["edge0"])) == ids(source.train)
    assert world.shared["edge0"].inputs["pixel_values"].max() == 0  # nothing left the device


def test_an_edge_server_may_bring_its_own_data(own):
    source = make_source(classes=4, each=60)
    fleet = make_fleet((1, 2))
    world = distribute(with_own_data(fleet, {"d00": own}, {"edge0": own}), source)
    assert len(world.shared["edge0"]) == 40
    without = distribute(with_own_data(fleet, {}, {"edge0": own}), source)
    kept = without.private["d00"]
    public = len(without.public.train) + len(without.public.validation)
    # it takes none of its device's samples
    assert len(kept.train) + len(kept.validation) == pytest.approx((240 - public) / 3, abs=4)


def test_all_may_bring_their_own_data(own):
    fleet = with_own_data(make_fleet((1,)), {"d00": own}, {"edge0": own})
    world = distribute(fleet, make_source(classes=4, each=60))
    assert set(world.private) == {"d00"}


def test_an_edge_server_whose_devices_all_bring_data_needs_its_own(own):
    fleet = with_own_data(make_fleet((1,)), {"d00": own})
    with pytest.raises(FleetError, match="cluster edge0: all its devices bring their own"):
        distribute(fleet, make_source(classes=4, each=60))


def test_a_host_reads_its_own_data_only_and_has_the_same_part(own, tmp_path):
    source = make_source(classes=4, each=60)
    fleet = with_own_data(make_fleet((2, 2)), {"d00": own, "d11": tmp_path / "on another host"})
    for name in ("d00", "d01", "edge1", "d10"):
        alone = distribute(fleet, source, [name])
        assert [*alone.shared, *alone.private] == [name]
        with pytest.raises(ValueError, match="the cloud's own data were asked for"):
            _ = alone.public
    here = with_own_data(make_fleet((2, 2)), {"d00": own, "d11": own})
    whole = distribute(here, source)
    assert ids(distribute(fleet, source, ["d01"]).private["d01"].train) == ids(
        whole.private["d01"].train
    )
    assert ids(distribute(fleet, source, ["edge1"]).shared["edge1"]) == ids(whole.shared["edge1"])


def test_own_data_of_an_unknown_class_or_place(own, tmp_path):
    source = make_source(classes=3, each=60)
    with pytest.raises(FleetError, match=r"device d01: data: class c3 .* knows c0, c1, c2"):
        distribute(with_own_data(make_fleet((2,)), {"d01": own}), source)
    with pytest.raises(FleetError, match=r"cluster edge0: data: class c3"):
        distribute(with_own_data(make_fleet((2,)), {}, {"edge0": own}), source)
    missing = with_own_data(make_fleet((2,)), {"d01": tmp_path / "gone"})
    with pytest.raises(FleetError, match=r"device d01: data: .*gone: no such file or folder"):
        distribute(missing, source)


# --- what cannot be shared out ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        ({"scheme": "pathological", "classes_per_device": 5}, "is 5, the data set has 4"),
        ({"scheme": "pathological", "classes": [["c0", "x"]]}, "unknown classes x; .*c0, c1"),
        ({"scheme": "pathological", "classes": [["c0"]] * 3}, "3 lists of classes for 2 devices"),
    ],
)
def test_impossible_partitions(partition, words):
    with pytest.raises(FleetError, match=words):
        distribute(make_fleet((2,), 0, partition), make_source(classes=4, each=60))


def test_a_device_without_samples_is_named():
    with pytest.raises(FleetError, match=r"device d0\d+ has \d+ train, .* fewer devices"):
        distribute(make_fleet((40,)), make_source(classes=2, each=20))


def test_a_cloud_without_samples_is_named():
    with pytest.raises(FleetError, match="the cloud has 1 train, 0 validation"):
        distribute(make_fleet((2,), 0, None, public=0.01), make_source(classes=2, each=20))


@pytest.mark.parametrize("more", [{}, {"classes_per_device": 2, "classes": [["a"]]}])
def test_classes_are_drawn_or_named(more):
    with pytest.raises(ValidationError, match="either"):
        Pathological.model_validate({"scheme": "pathological", **more})


@pytest.mark.parametrize("scheme", ["iid", "pathological", "dirichlet"])
def test_shares_stay_when_a_device_leaves_and_comes_back(scheme: str):
    """Whoever the data were dealt to once keeps them; a new device gets none."""
    more = {"pathological": {"classes_per_device": 2}, "dirichlet": {"alpha": 1.0}}.get(scheme, {})
    partition, source = {"scheme": scheme, **more}, make_source(classes=3, each=60)
    before = distribute(make_fleet((3,), 1, partition), source)
    fleet = make_fleet((3,), 1, partition, dealt_to=["d00", "d01", "d02"])
    one = fleet.clusters[0].model_copy(update={"devices": fleet.clusters[0].devices[1:]})
    without = distribute(fleet.model_copy(update={"clusters": [one]}), source)
    assert without.private.keys() == {"d01", "d02"}
    for world, names in ((without, ("d01", "d02")), (distribute(fleet, source), before.private)):
        for name in names:
            for part in ("train", "validation", "test"):
                own = (getattr(each.private[name], part) for each in (world, before))
                assert len({tuple(ids(samples)) for samples in own}) == 1
    assert set(ids(without.shared["edge0"])) < set(ids(before.shared["edge0"]))
    with pytest.raises(FleetError, match=r"device d03: data\.dealt_to deals"):
        distribute(make_fleet((4,), 1, partition, dealt_to=["d00", "d01", "d02"]), source)
