"""Replies that edge and cloud server accept of those below: every field against the fleet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from acme_fleet.cloud.replies import Assigned, check_finished
from acme_fleet.cloud.replies import check_profile as check_cluster
from acme_fleet.config.devices import Energy, Part
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.cost.size import parameter_count
from acme_fleet.edge.parts import kinds, whole
from acme_fleet.edge.replies import (
    check_key,
    check_profile,
    check_pruned,
    check_round,
    check_sample,
    longest_row,
)
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.cloud_edge import ClusterProfile, ClusterReport
from acme_fleet.messages.edge_device import (
    ByClassUpload,
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    ImportanceUpload,
    MaskedUpload,
    RoundReport,
    Upload,
    WeightsUpload,
)
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan, genotypes_by_hand
from acme_fleet.models.features import Classifier
from acme_fleet.models.header.module import initial_tensors
from acme_fleet.personalization.masked import MaskedRule
from acme_fleet.personalization.rules import rule_of
from tiny_fleet import tiny

FLEET = tiny()
NORTH = FLEET.clusters[0]
PLAN = HeaderPlan(
    genotype=Genotype(
        blocks=(Block(inputs=(0, 1), operations=("conv3", "identity")),), cells=1, channels=6
    ),
    hidden=16,
    classes=4,
    axes=2,
)
CHANNELS = {name: torch.ones(6) for name in PLAN.layers}


# --- the edge server: profiles ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"storage_bytes": 1}, "claims to store 1 bytes, the fleet file says 60000"),
        ({"storage_bytes": 2**53}, "the fleet file says 60000"),
        ({"energy": Energy(power_w=1e9)}, r"power_w = 1000000000.0, the fleet file says 2.0"),
        ({"energy": Energy(epochs=10**9)}, "claims epochs"),
        ({"precisions": ("int4",)}, "claims to execute int4, the fleet file says int8, float32"),
        ({"name": "cam-2"}, "bears the name cam-2"),
    ],
    ids=str,
)
def test_device_claims_what_the_fleet_file_says(claim: dict[str, Any], words: str) -> None:
    device = NORTH.devices[0]
    honest = {
        "name": "cam-1",
        "storage_bytes": device.storage,
        "energy": device.energy,
        "precisions": device.precisions,
    }
    check_profile(device, DeviceProfile(**honest))
    with pytest.raises(ProtocolError, match=words):
        check_profile(device, DeviceProfile(**honest | claim))


# --- the edge server: feature samples ---------------------------------------------------------

SETTINGS = Personalization(feature_samples=5)


def _sample(features: torch.Tensor, **more: Any) -> FeatureSample:
    return FeatureSample(features=features, **more)


def _rows(length: float = 4.0) -> torch.Tensor:
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    return (length * rows / rows.norm(dim=1, keepdim=True)).half()


def test_honest_samples_are_accepted() -> None:
    check_sample("cam-1", _sample(_rows()), SETTINGS, 16, 4.0)
    check_sample("cam-1", _sample(_rows(30)), SETTINGS, 16, 4.0)
    none = SETTINGS.model_copy(update={"similarity": "none"})
    check_sample("cam-1", _sample(torch.zeros(0, 16).half()), none, 16, 0.0)
    bytes8 = SETTINGS.model_copy(update={"privacy": Privacy(sketch_bits=8)})
    whole_numbers = torch.full((5, 16), 127, dtype=torch.int8)
    check_sample("cam-1", _sample(whole_numbers, scale=1 / 127), bytes8, 16, 4.0)
    with pytest.raises(ProtocolError, match="row of length"):
        check_sample("cam-1", _sample(whole_numbers, scale=1e6), bytes8, 16, 4.0)
    with pytest.raises(ProtocolError, match="row of length inf"):
        check_sample("cam-1", _sample(whole_numbers, scale=1e308), bytes8, 16, 4.0)


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        (_sample(_rows(4000)), r"a row of length 4e\+03, at most 40 is plausible"),
        (_sample(_rows(), scale=1e6), "with a scale of 1e"),
        (_sample(_rows().float()), "is torch.float32"),
        (_sample(torch.zeros(5, 16, dtype=torch.int8)), "is torch.int8"),
        (_sample(_rows()[:, :-1]), "has shape"),
        (_sample(torch.zeros(0, 16).half()), "has shape"),
        (_sample(torch.zeros(6, 16).half()), "has shape"),
        (_sample(_rows(), public_key="0f" * 32), "must have no public key"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sample_that_no_device_computes_is_refused(sample: FeatureSample, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        check_sample("cam-1", sample, SETTINGS, 16, 4.0)


def test_noise_that_was_asked_for_is_plausible() -> None:
    """Rows of noise of 50 deviations: no seed gives one that is refused."""
    privacy = Privacy(feature_noise=50.0, sketch_dim=8)
    most, deviation = longest_row(4.0, 8, privacy, 16), 50.0 * 2 * 4.0
    noise = deviation * torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0))
    assert float(noise.norm(dim=1).max()) < most < 20 * deviation


def test_public_keys_without_a_secret_in_common_are_refused() -> None:
    """Curve25519's points of low order, in all their spellings, as the library has them."""
    curve = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.x25519")
    library = curve.X25519PrivateKey.generate()
    good = library.public_key().public_bytes_raw().hex()
    check_key("cam-1", good, masking=True)
    prime = 2**255 - 19
    order8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
    other8 = 39382357235489614581723060781553021112529911719440698176882885853963445705823
    for point in (0, 1, order8, other8, prime - 1, prime, prime + 1):
        for high in (0, 2**255):
            key = (point + high).to_bytes(32, "little").hex()
            with pytest.raises(ValueError, match="shared key"):
                library.exchange(curve.X25519PublicKey.from_public_bytes(bytes.fromhex(key)))
            with pytest.raises(ProtocolError, match="no secret in common"):
                check_key("cam-1", key, masking=True)
    with pytest.raises(ProtocolError, match="must have a public key"):
        check_key("cam-1", "", masking=True)


# --- the edge server: rounds ------------------------------------------------------------------


def check_upload(upload: Upload, asked: Personalization) -> None:
    """As the edge server checks what ``cam-1`` sent for round 1."""
    check_round("cam-1", upload.round, 1)
    rule_of(asked).check("cam-1", upload, PLAN, ["cam-1"])


def test_an_upload_is_of_this_round_and_has_the_form_that_was_asked_for() -> None:
    both = SETTINGS.model_copy(update={"mix": "both"})
    by_class = both.model_copy(update={"classifier": "holders"})
    header = initial_tensors(PLAN.shapes(), torch.Generator().manual_seed(0))
    whole = {"round": 1, "importance": CHANNELS, "header": header}
    plain = ImportanceUpload(round=1, importance=CHANNELS)
    weights, holder = WeightsUpload(**whole), ByClassUpload(**whole, held=[0])
    for upload, asked in ((plain, SETTINGS), (weights, both), (holder, by_class)):
        check_upload(upload, asked)
    layer = next(iter(PLAN.layers))
    wrong: list[tuple[Upload, dict[str, Any], Personalization, str]] = [
        (plain, {"round": 0}, SETTINGS, "answered for round 0, this is round 1"),
        (plain, {"importance": {k: v.half() for k, v in CHANNELS.items()}}, SETTINGS, "float16"),
        (plain, {"importance": {k: v.int() for k, v in CHANNELS.items()}}, SETTINGS, "int32"),
        (weights, {"header": {k: v.bfloat16() for k, v in header.items()}}, both, "bfloat16"),
        (weights, {"header": {}}, both, "lacks"),
        (weights, {"kept": {layer: [9]}}, both, "kept"),
        (holder, {"held": [0, 60_000]}, by_class, "classes that cam-1 holds"),
    ]
    for upload, fields, asked, words in wrong:
        with pytest.raises(ProtocolError, match=words):
            check_upload(upload.model_copy(update=fields), asked)


def test_masked_shares_are_of_this_round_and_for_all_receivers() -> None:
    shares = {
        name: torch.full((6 * len(PLAN.layers),), -(2**31), dtype=torch.int32)
        for name in ("cam-1", "cam-2")
    }
    good, rule = MaskedUpload(round=1, shares=shares), MaskedRule(SETTINGS)
    rule.check("cam-1", good, PLAN, shares.keys())
    cut = {name: of[1:] for name, of in shares.items()}
    for wrong in ({"cam-1": shares["cam-1"]}, {**shares, "cam-3": shares["cam-1"]}, cut):
        upload = MaskedUpload(round=1, shares=wrong)
        with pytest.raises(ProtocolError):
            rule.check("cam-1", upload, PLAN, shares.keys())


def test_a_round_report_is_of_this_round_and_of_neurons_that_there_were() -> None:
    most = PLAN.neurons
    check_pruned("cam-1", RoundReport(round=1, neurons=most, changed=False), 1, PLAN)
    for number, neurons in ((0, most), (2, most), (1, most + 1), (1, 2**53)):
        report = RoundReport(round=number, neurons=neurons, changed=True)
        with pytest.raises(ProtocolError):
            check_pruned("cam-1", report, 1, PLAN)


# --- the cloud server: profiles ---------------------------------------------------------------

SPREAD = tiny(
    clusters=[
        {
            "name": "north",
            "devices": [
                {"name": "a", "storage": 100},
                {"name": "b", "storage": 100},
                {"name": "c", "storage": 200, "energy": {"power_w": 1.0}},
                {"name": "d", "storage": 300},
            ],
        },
        {"name": "south", "devices": [{"name": "e", "storage": 50}]},
    ]
)
PER_DEVICE = SPREAD.model_copy(
    update={"selection": SPREAD.selection.model_copy(update={"matching": "device"})}
)
_PLAIN, _OTHER = Energy(), Energy(power_w=1.0)


@settings(max_examples=60)
@given(st.sets(st.sampled_from("abcd"), min_size=1))
def test_what_any_answering_devices_give_is_accepted(names: set[str]) -> None:
    own = {d.name: (d.storage, d.energy, d.precisions) for d in SPREAD.devices if d.name in names}
    profile = ClusterProfile(name="north", parts=[whole(own.values())])
    check_cluster(SPREAD, "north", profile)
    each = ClusterProfile(name="north", parts=[part for part, _ in kinds(own)])
    check_cluster(PER_DEVICE, "north", each)


@pytest.mark.parametrize(
    ("fleet", "parts", "words"),
    [
        (SPREAD, [(1, [_PLAIN], 1)], "stores 1 bytes"),
        (SPREAD, [(50, [_PLAIN], 1)], "stores 50 bytes"),
        (SPREAD, [(200, [_PLAIN], 1)], "stores 200 bytes"),
        (SPREAD, [(100, [Energy(power_w=1e9)], 1)], "such energy constants"),
        (SPREAD, [(100, [_PLAIN, Energy(epochs=2)], 2)], "energy constants that are not"),
        (SPREAD, [(100, [_PLAIN, _PLAIN], 2)], "energy constants that are not"),
        (SPREAD, [(100, [_PLAIN], 4)], "has 4 devices, the fleet file 3"),
        (SPREAD, [(100, [_PLAIN, _OTHER], 1)], "has 1 devices"),
        (SPREAD, [(100, [_PLAIN, _OTHER], 2**53)], "devices, the fleet file 4"),
        (SPREAD, [(100, [_PLAIN], 2), (300, [_PLAIN], 1)], "has 2 parts"),
        (PER_DEVICE, [(100, [_PLAIN], 2), (100, [_PLAIN], 2)], "same part twice"),
        (PER_DEVICE, [(100, [_PLAIN], 3)], "has 3 devices, the fleet file 2"),
        (PER_DEVICE, [(200, [_PLAIN], 1)], "stores 200 bytes"),
        (PER_DEVICE, [(100, [_PLAIN, _OTHER], 2)], "energy constants that are not"),
    ],
)
def test_profile_that_no_devices_of_the_cluster_give(
    fleet: Fleet, parts: list[tuple[int, list[Energy], int]], words: str
) -> None:
    executed = ("int8", "float32")
    told = [Part(storage_bytes=s, energies=e, devices=n, precisions=executed) for s, e, n in parts]
    with pytest.raises(ProtocolError, match=words):
        check_cluster(fleet, "north", ClusterProfile(name="north", parts=told))


def test_profile_in_anothers_name() -> None:
    told = ClusterProfile(
        name="south",
        parts=[
            Part(storage_bytes=100, energies=[_PLAIN], devices=1, precisions=("int8", "float32"))
        ],
    )
    with pytest.raises(ProtocolError, match="bears the name south"):
        check_cluster(SPREAD, "north", told)


# --- the cloud server: reports ----------------------------------------------------------------


def _device(name: str, **fields: Any) -> DeviceReport:
    return DeviceReport(
        **{
            "name": name,
            "size_bytes": 50_000,
            "params": 12_000,
            "accuracy_coarse": 0.5,
            "accuracy": 0.75,
            "accuracy_linear": 0.25,
            "test_samples": 8,
            "latency_s": 0.001,
            "neurons_coarse": PLAN.neurons,
            "neurons": PLAN.neurons - 2,
            "raw_data_bytes": 5000,
            **fields,
        }
    )


def _contender(name: str, **fields: Any) -> dict[str, Any]:
    own = {"name": name, "params": 300, "accuracy": 0.7, "loss": 0.9, "evaluated": 9}
    return own | fields


_SEARCHED = _contender("random", params=parameter_count(PLAN.shapes()))
_LINEAR = _contender("linear", params=4 * 17, evaluated=0)
_HONEST: dict[str, Any] = {
    "name": "north",
    "genotype": PLAN.genotype.model_dump(mode="json"),
    "header": PLAN.genotype.describe(),
    "contenders": [_SEARCHED, _LINEAR, _contender("evolution")],
    "device_names": ["cam-1", "cam-2"],
    "similarity": [[0.75, 0.25], [0.5, 0.5]],
    "reports": [_device("cam-1"), _device("cam-2")],
    "lost": {},
    "missed": {"cam-1": 1},
}
_ASSIGNED = Assigned(
    "north",
    [Part(storage_bytes=60_000, energies=[Energy()], devices=2, precisions=("int8", "float32"))],
    [0],
    60_000,
)


@pytest.fixture
def reference(make_classifier: Callable[..., Classifier]) -> Classifier:
    """Hidden size 16, four classes, a patch grid."""
    return make_classifier("vit")


def test_honest_report_is_accepted(reference: Classifier) -> None:
    check_finished(FLEET, reference, _ASSIGNED, ClusterReport(**_HONEST))
    one = {
        "device_names": ["cam-2"],
        "similarity": [[1.0]],
        "reports": [_device("cam-2")],
        "lost": {"cam-1": "the battery is empty"},
        "missed": {},
    }
    check_finished(FLEET, reference, _ASSIGNED, ClusterReport(**_HONEST | one))


def test_header_made_by_hand_is_the_one_of_its_name(reference: Classifier) -> None:
    """A fleet that searches in any case expects a strategy's."""
    genotype = genotypes_by_hand(1, 1, 6)["pointwise"]
    plan = reference.header_plan(genotype)
    made = _contender("pointwise", params=parameter_count(plan.shapes()), evaluated=0)
    devices = [_device(name, neurons_coarse=plan.neurons, neurons=1) for name in ("cam-1", "cam-2")]
    named = {"genotype": genotype.model_dump(mode="json"), "header": genotype.describe()}
    report: dict[str, Any] = _HONEST | named | {"reports": devices, "contenders": [made, _LINEAR]}
    fleet = tiny(**{"search.when": "useful"})
    check_finished(fleet, reference, _ASSIGNED, ClusterReport(**report))
    with pytest.raises(ProtocolError, match=r"\['pointwise', 'linear'\], expected random, linear"):
        check_finished(FLEET, reference, _ASSIGNED, ClusterReport(**report))
    report["contenders"] = [made | {"name": "convolutions"}, _LINEAR]
    with pytest.raises(ProtocolError, match="not the one named convolutions"):
        check_finished(fleet, reference, _ASSIGNED, ClusterReport(**report))


def _first(**fields: Any) -> dict[str, Any]:
    return {"reports": [_device("cam-1", **fields), _device("cam-2")]}


_LIES: dict[str, dict[str, Any]] = {
    "another cluster": {"name": "south"},
    "a group that is not there": {"name": "north:2"},
    "group of one": {"name": "north:1"},
    "unknown device": {"reports": [_device("cam-1"), _device("cam-9")]},
    "device of another cluster": {"reports": [_device("cam-1"), _device("badge-1")]},
    "device twice": {"reports": [_device("cam-1"), _device("cam-1")]},
    "device left out": {"reports": [_device("cam-1")]},
    "no device": {"reports": [], "device_names": [], "similarity": [], "missed": {}},
    "listed twice": {"device_names": ["cam-1", "cam-1"]},
    "listed of another cluster": {"device_names": ["cam-1", "badge-1"]},
    "lost of another cluster": {"lost": {"badge-1": "gone"}},
    "lost and finished": {"lost": {"cam-1": "gone"}},
    "similarity of another size": {"similarity": [[1.0]]},
    "similarity that is no square": {"similarity": [[1.0], [0.5, 0.5]]},
    "similarity without rows": {"similarity": []},
    "columns in a small cluster": {"columns": [[0, 1], [0, 1]]},
    "rows that do not sum to one": {"similarity": [[0.75, 0.25], [1.0, 1.0]]},
    "rows of zeros": {"similarity": [[0.0, 0.0], [0.5, 0.5]]},
    "missed by a stranger": {"missed": {"badge-1": 1}},
    "missed more rounds than there are": {"missed": {"cam-1": 4}},
    "missed 2^53": {"missed": {"cam-1": 2**53}},
    "shortened where nothing is mixed": {"shortened": {"cam-1": 0.5}},
    "genotype of nothing": {"genotype": {}},
    "genotype with more": {"genotype": {**_HONEST["genotype"], "x": "<script>"}},
    "genotype of text": {"genotype": {**_HONEST["genotype"], "channels": "6"}},
    "larger genotype": {"genotype": {**_HONEST["genotype"], "channels": 4096}},
    "another description": {"header": "best header ever"},
    "no contender": {"contenders": []},
    "linear first": {"contenders": [_LINEAR, _SEARCHED]},
    "unknown contender": {"contenders": [_SEARCHED, _LINEAR, _contender("magic")]},
    "contender twice": {"contenders": [_SEARCHED, _LINEAR, *[_contender("evolution")] * 2]},
    "contender too large": {
        "contenders": [_SEARCHED, _LINEAR, _contender("evolution", params=2**53)]
    },
    "too many tries": {"contenders": [_SEARCHED | {"evaluated": 2**53}, _LINEAR]},
    "absurd loss": {"contenders": [_SEARCHED | {"loss": 1e30}, _LINEAR]},
    "larger searched header": {"contenders": [_SEARCHED | {"params": 7}, _LINEAR]},
    "larger than the device stores": _first(size_bytes=60_001),
    "more parameters than bytes": _first(params=100_001),
    "more neurons than received": _first(neurons=PLAN.neurons + 1),
    "another header received": _first(neurons_coarse=PLAN.neurons + 1),
    "latency of ages": _first(latency_s=1e30),
    "2^53 test samples": _first(test_samples=2**53),
    "raw data of the world": _first(raw_data_bytes=2**53),
    "accuracy that nothing counts to": _first(accuracy=0.7),
    "coarse accuracy that nothing counts to": _first(accuracy_coarse=0.01),
}


@pytest.mark.parametrize("lie", _LIES)
def test_report_that_does_not_fit_the_fleet_is_refused(lie: str, reference: Classifier) -> None:
    report = ClusterReport(**_HONEST | _LIES[lie])
    with pytest.raises(ProtocolError, match="report of"):
        check_finished(FLEET, reference, _ASSIGNED, report)


@pytest.mark.parametrize(
    "fields",
    [
        {"similarity": [[0.1] * 2] * 10_001},
        {"lost": {f"d{n}": "" for n in range(10_001)}},
        {"contenders": [_LINEAR] * 101},
        {"similarity": [[float("nan"), 1.0], [0.5, 0.5]]},
        {"similarity": [[-0.5, 1.5], [0.5, 0.5]]},
    ],
    ids=["rows", "lost", "contenders", "nan", "negative"],
)
def test_report_that_is_no_message(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClusterReport(**_HONEST | fields)


def test_groups_of_a_cluster_are_of_the_kinds_that_they_were_sent_for(
    reference: Classifier,
) -> None:
    """With a backbone for each kind of device, a group cannot report another kind's device."""
    matched = {"selection": FLEET.selection.model_copy(update={"matching": "device"})}
    fleet = FLEET.model_copy(update=matched)
    parts = [
        Part(storage_bytes=60_000, energies=[Energy()], devices=1, precisions=("int8", "float32")),
        Part(storage_bytes=70_000, energies=[Energy()], devices=1, precisions=("int8", "float32")),
    ]
    second = Assigned("north", parts, [1], 70_000)
    honest = {
        **_HONEST,
        "name": "north:2",
        "device_names": ["cam-2"],
        "similarity": [[1.0]],
        "reports": [_device("cam-2")],
        "missed": {},
    }
    check_finished(fleet, reference, second, ClusterReport(**honest))
    for lie in (
        {"name": "north"},
        {"name": "north:1"},
        {"reports": [_device("cam-1")]},
        {"device_names": ["cam-1"]},
        {"lost": {"cam-1": "gone"}},
    ):
        with pytest.raises(ProtocolError):
            check_finished(fleet, reference, second, ClusterReport(**honest | lie))
