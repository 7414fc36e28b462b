"""One device of five, or three of ten, lie in every rule: at most they are left out themselves.

The edge server is a real one. The devices are played: each sends features of its own images on the
backbone that it got, and seeded importance sets and headers; the last ones lie.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.edge.server import EdgeServer
from acme_fleet.errors import ProtocolError
from acme_fleet.links.embedded import EmbeddedLink
from acme_fleet.messages.base import Message
from acme_fleet.messages.cloud_edge import BackboneAssignment, ClusterReport
from acme_fleet.messages.edge_device import (
    ByClassUpload,
    DeviceProfile,
    DeviceReport,
    FeatureSample,
    HeaderAssignment,
    ImportanceUpload,
    MaskedRoundStart,
    MaskedUpdate,
    MaskedUpload,
    OpenUpdate,
    ProfileRequest,
    RoundReport,
    Start,
    Update,
    Upload,
    WeightsUpdate,
    WeightsUpload,
)
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.features import feature_samples
from acme_fleet.models.storage import backbone_from, clone_state, config_document
from acme_fleet.privacy.masking import Masker, public_key, unmask
from acme_fleet.runs.journal import Journal
from acme_fleet.tasks.classification import CLASSIFICATION
from tiny_fleet import tiny

NAMES = [f"cam-{n}" for n in range(5)]
LIAR = NAMES[-1]
CHANGE = 0.02  # of each of a header's numbers in a round, standard deviation

RULES: dict[str, dict[str, Any]] = {
    "importance, debiased": {},
    "importance, literal": {"similarity": "literal", "temperature": 1.0},
    "both, debiased": {"mix": "both"},
    "weights, holders, none": {"mix": "weights", "similarity": "none", "classifier": "holders"},
    "masked, debiased": {"privacy": {"masking": True}},
    "sketches of 8 bits": {"privacy": {"sketch_dim": 8, "sketch_bits": 8}},
}
_FEATURES: dict[str, torch.Tensor] = {}


@dataclass
class Played:
    """A device of four classes' images that answers at once; what it got is remembered."""

    name: str
    fleet: Fleet
    samples: Any
    lie: Callable[[Message, Played], Message] | None = None
    heard: list[dict[str, torch.Tensor]] = field(default_factory=list)
    headers: list[dict[str, torch.Tensor]] = field(default_factory=list)
    sent: list[Upload] = field(default_factory=list)
    assignment: HeaderAssignment | None = None

    def handle(self, message: Message) -> Message:
        answer = self.answer(message)
        return answer if self.lie is None else self.lie(answer, self)

    @property
    def number(self) -> int:
        return int(self.name.removeprefix("cam-"))

    @property
    def secret(self) -> bytes:
        return self.name.encode() * 8

    @property
    def plan(self) -> HeaderPlan:
        assert self.assignment is not None
        return HeaderPlan.model_validate(self.assignment.plan)

    def answer(self, message: Message) -> Message:
        own = next(device for device in self.fleet.devices if device.name == self.name)
        match message:
            case ProfileRequest():
                return DeviceProfile(
                    name=own.name,
                    storage_bytes=own.storage,
                    energy=own.energy,
                    precisions=own.precisions,
                )
            case HeaderAssignment():
                self.assignment = message
                return self._features(message)
            case Start():
                self.sent.append(self._upload(message))
                return self.sent[-1]
            case Update():
                return self._hear(message)
        neurons = self.plan.neurons
        return DeviceReport(
            name=self.name,
            size_bytes=own.storage // 2,
            params=100,
            **dict.fromkeys(("accuracy", "accuracy_coarse", "accuracy_linear"), 0.5),
            test_samples=8,
            latency_s=0.1,
            neurons_coarse=neurons,
            neurons=neurons,
            raw_data_bytes=1000,
        )

    def _features(self, message: HeaderAssignment) -> FeatureSample:
        asked = self.fleet.personalization
        if self.name not in _FEATURES:  # the backbone is the same in all runs
            backbone = backbone_from(message.config, message.backbone)
            _FEATURES[self.name] = feature_samples(backbone, self.samples).inputs["pooled"]
        rows = _FEATURES[self.name][: asked.rows_sent]
        key = public_key(self.secret) if asked.privacy.masking else ""
        if asked.privacy.sketch_bits == 8:
            rows = rows[:, : asked.privacy.sketch_dim]
            scale = float(rows.abs().max()) / 127
            whole = (rows / scale).round().to(torch.int8)
            return FeatureSample(features=whole, scale=scale, public_key=key)
        return FeatureSample(features=rows.half(), public_key=key)

    def _upload(self, start: Start) -> Upload:
        assert self.assignment is not None
        asked, plan = self.fleet.personalization, self.plan
        draw = torch.Generator().manual_seed(1000 * start.round + self.number)
        channels = plan.genotype.channels
        importance = {layer: torch.rand(channels, generator=draw) for layer in plan.layers}
        if isinstance(start, MaskedRoundStart):
            whole = torch.cat(list(importance.values())).double()
            occasion = f"{start.round}/{start.nonce}"
            masker = Masker(self.name, self.secret, start.public_keys, occasion)
            shares = masker.shares(whole / whole.sum(), start.weights)
            return MaskedUpload(round=start.round, shares=shares)
        if asked.mix == "importance":
            return ImportanceUpload(round=start.round, importance=importance)
        header = {
            name: tensor + CHANGE * torch.randn(tensor.shape, generator=draw)
            for name, tensor in self.assignment.header.items()
        }
        number = self.number
        whole = {"round": start.round, "importance": importance, "header": header}
        if asked.classifier == "everyone":
            return WeightsUpload(**whole)
        return ByClassUpload(**whole, held=sorted({number % 4, (number + 1) % 4}))

    def _hear(self, update: Update) -> RoundReport:
        heard: dict[str, torch.Tensor] = {}
        if isinstance(update, MaskedUpdate):
            with suppress(ProtocolError):  # a device goes on with its own set then
                occasion = f"{update.round}/{update.nonce}"
                heard = {"all": unmask(update.total, self.secret, occasion)}
        elif isinstance(update, OpenUpdate):
            heard = update.importance
        self.heard.append(heard)
        self.headers.append(update.header if isinstance(update, WeightsUpdate) else {})
        return RoundReport(round=update.round, neurons=self.plan.neurons, changed=True)


@dataclass(frozen=True)
class Outcome:
    """Updates of the honest devices, and the edge server's report to the cloud."""

    report: ClusterReport
    devices: dict[str, Played]
    liars: list[str]

    @property
    def honest(self) -> list[str]:
        return [name for name in self.devices if name not in self.liars]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, make_samples: Callable[..., Any]) -> Any:
    """``stage(rule, lie)``: a run of the edge server; the header is searched once for all.

    ``devices`` take part, of which the last ``liars`` lie.
    """
    from acme_fleet.models.vit import new_vit, vit_config

    searched = tmp_path_factory.mktemp("searched") / "edge"

    def run(
        rule: str,
        lie: Callable[[Message, Played], Message] | None,
        devices: int = len(NAMES),
        liars: int = 1,
    ) -> Outcome:
        names = [f"cam-{number}" for number in range(devices)]
        changes = {"rounds": 2, "quorum": 0.5, "feature_samples": 8, **RULES[rule]}
        clusters = [
            {"name": "north", "devices": [{"name": n, "storage": "60 kB"} for n in names]},
        ]
        fleet = tiny(
            clusters=clusters,
            **{"search.rivals": False},
            **{f"personalization.{name}": value for name, value in changes.items()},
        )
        model = new_vit(CLASSIFICATION, vit_config(fleet.reference, (1, 8, 8)), "abcd", 0)
        folder = tmp_path_factory.mktemp("run") / "edge"
        if searched.exists():
            shutil.copytree(searched, folder)
        folder.mkdir(exist_ok=True)
        journal = Journal(folder / "events.jsonl")
        played = {n: Played(n, fleet, make_samples(12, seed=i)) for i, n in enumerate(names)}
        for name in names[-liars:]:
            played[name].lie = lie
        link = EmbeddedLink("north", played, journal, "device")
        shared = make_samples(40, seed=9)
        edge = EdgeServer("north", fleet, lambda *_: shared, link, folder, journal)
        edge.handle(ProfileRequest())
        backbone = model.backbone
        assignment = BackboneAssignment(
            parts=[0],
            width=1.0,
            depth=2,
            config=config_document(backbone),
            backbone=clone_state(backbone),
            classifier=clone_state(model.head),
            class_names=list("abcd"),
            preprocessing=ImagePreprocessing.centred(8, 8, 1).model_dump(mode="json"),
        )
        report = edge.handle(assignment)
        assert isinstance(report, ClusterReport)
        if not searched.exists():
            searched.mkdir()
            for name in ("coarse.safetensors", "contenders.json"):
                shutil.copy(folder / name, searched / name)
        return Outcome(report, played, names[-liars:])

    return run


# --- the lies ---------------------------------------------------------------------------------


def _forged(message: Message, **fields: Any) -> Message:
    """The message with fields that its constructor would refuse."""
    return type(message).model_construct(**{**dict(message), **fields})


def _of(kind: type[Message], change: Callable[[Any, Played], Message]) -> Any:
    return lambda answer, device: change(answer, device) if isinstance(answer, kind) else answer


def _features(change: Callable[[torch.Tensor], torch.Tensor], **more: Any) -> Any:
    return _of(FeatureSample, lambda m, _: _forged(m, features=change(m.features), **more))


def _tensors(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    def forge(message: Any, _: Played) -> Message:
        return _forged(message, **{name: {k: change(v) for k, v in getattr(message, name).items()}})

    return _of(Upload, forge)


def _upload(**fields: Any) -> Any:
    return _of(Upload, lambda m, _: _forged(m, **fields))


def _one_neuron(values: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(0), len(values)).to(values.dtype) * 3e38


def _replayed(message: Any, device: Played) -> Message:
    return device.sent[0]


def _identity(message: Any, _: Played) -> Message:
    return _forged(message, name="cam-0")


LIES: dict[str, Any] = {
    "another's profile": _of(DeviceProfile, _identity),
    "one byte of storage": _of(DeviceProfile, lambda m, _: _forged(m, storage_bytes=1)),
    "features huge": _features(lambda f: f.float() * 1e6),
    "features huge by scale": _features(lambda f: f, scale=1e300),
    "features ten times": _features(lambda f: f * 10),
    "features tiny": _features(lambda f: f * 1e-4),
    "features nan": _features(lambda f: f.float() * float("nan")),
    "features infinite": _features(lambda f: f.float() + float("inf")),
    "features negative": _features(lambda f: -f),
    "features zero": _features(lambda f: f * 0),
    "features of another shape": _features(lambda f: f[:, :-1]),
    "features of another type": _features(lambda f: f.float()),
    "one feature": _features(lambda f: f[:1]),
    "no key": _features(lambda f: f, public_key=""),
    "a weak key": _features(lambda f: f, public_key="00" * 32),
    "another's key": _features(lambda f: f, public_key=public_key(b"cam-0" * 8)),
    "another message": _of(
        FeatureSample, lambda m, _: RoundReport(round=0, neurons=1, changed=False)
    ),
    "importance nan": _tensors("importance", lambda v: v * float("nan")),
    "importance infinite": _tensors("importance", lambda v: v + float("inf")),
    "importance negative": _tensors("importance", lambda v: -v),
    "importance zero": _tensors("importance", lambda v: v * 0),
    "importance huge": _tensors("importance", lambda v: v * 3e38),
    "importance tiny": _tensors("importance", lambda v: v * 0 + 1e-45),
    "importance in one neuron": _tensors("importance", _one_neuron),
    "importance cut": _tensors("importance", lambda v: v[:-1]),
    "importance in half": _tensors("importance", lambda v: v.half()),
    "importance in integers": _tensors("importance", lambda v: (v * 100).int()),
    "importance missing": _upload(importance={}),
    "importance of nobody": _upload(importance={"evil": torch.ones(6)}),
    "of an earlier round": _of(Upload, _replayed),
    "of a later round": _upload(round=7),
    "header nan": _tensors("header", lambda v: v * float("nan")),
    "header huge": _tensors("header", lambda v: v * 1e30),
    "header zero": _tensors("header", lambda v: v * 0),
    "header negative": _tensors("header", lambda v: -v),
    "header cut": _tensors("header", lambda v: v[..., :-1]),
    "header in half": _tensors("header", lambda v: v.half()),
    "header missing": _upload(header={}),
    "channels that do not exist": _upload(kept={"evil": [0]}),
    "all classes": _upload(held=[0, 1, 2, 3]),
    "classes that do not exist": _upload(held=[0, 60_000]),
    "classes twice": _upload(held=[1, 1]),
    "shares at the edge": _tensors("shares", lambda v: torch.full_like(v, 2**31 - 1)),
    "shares below": _tensors("shares", lambda v: torch.full_like(v, -(2**31))),
    "shares of nothing": _tensors("shares", lambda v: v * 0),
    "shares turned round": _tensors("shares", lambda v: v.flip(0)),
    "shares in long integers": _tensors("shares", lambda v: v.long()),
    "shares for nobody": _upload(shares={}),
    "report of another round": _of(RoundReport, lambda m, _: _forged(m, round=9)),
    "more neurons than there were": _of(RoundReport, lambda m, _: _forged(m, neurons=2**53)),
    "report in another's name": _of(DeviceReport, _identity),
    "a latency of ages": _of(DeviceReport, lambda m, _: _forged(m, latency_s=1e300)),
    "a model too large": _of(DeviceReport, lambda m, _: _forged(m, size_bytes=10**9)),
}


def _silent(answer: Message, device: Played) -> Message:
    raise ProtocolError("the battery is empty")


def _touches(lie: str, rule: str) -> bool:
    """True if a lie is about a field that is sent under a rule."""
    settings = RULES[rule]
    masked = bool(settings.get("privacy", {}).get("masking"))
    weights = settings.get("mix", "importance") != "importance"
    if lie.startswith("header"):
        return weights
    if "class" in lie:
        return settings.get("classifier") == "holders"
    if lie.startswith("shares"):
        return masked
    if lie.startswith("importance"):
        return not masked
    if lie == "another's key":
        return masked
    if lie.startswith(("features", "one feature")):
        return settings.get("similarity") != "none" and "sketch_dim" not in str(settings)
    return True


def _home(lie: str) -> str:
    """The rule under which a lie is tried first."""
    if lie.startswith(("header", "channels")):
        return "both, debiased"
    if "class" in lie:
        return "weights, holders, none"
    if lie.startswith("shares") or "key" in lie:
        return "masked, debiased"
    return "importance, debiased"


@pytest.mark.parametrize("rule", RULES)
def test_one_liar_of_five_changes_what_honest_devices_hear_within_a_bound(
    rule: str, stage: Callable[..., Outcome]
) -> None:
    everywhere = ["features ten times", "importance in one neuron", "of an earlier round"]
    lies = [lie for lie in LIES if _home(lie) == rule or lie in everywhere]
    _check_all(rule, [lie for lie in lies if _touches(lie, rule)], stage)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_lie_under_every_rule(rule: str, stage: Callable[..., Outcome]) -> None:
    _check_all(rule, [lie for lie in LIES if _touches(lie, rule)], stage)


@pytest.mark.parametrize(
    "rule", ["both, debiased", *(pytest.param(r, marks=pytest.mark.slow) for r in RULES)]
)
def test_three_liars_of_ten_are_at_most_left_out_themselves(
    rule: str, request: pytest.FixtureRequest, stage: Callable[..., Outcome]
) -> None:
    """In CI the lies that pass every check."""
    slow = request.node.get_closest_marker("slow") is not None
    lies = LIES if slow else ["features ten times", "header huge", "of an earlier round"]
    _check_all(rule, [lie for lie in lies if _touches(lie, rule)], stage, devices=10, liars=3)


def _check_all(rule: str, lies: list[str], stage: Callable[..., Outcome], **size: int) -> None:
    pytest.importorskip("cryptography")
    without = stage(rule, _silent, **size)
    assert set(without.liars) <= without.report.lost.keys()
    honest = stage(rule, None, **size)
    assert honest.report.device_names == [*honest.devices]
    _check(honest, without)
    for lie in lies:
        try:
            _check(stage(rule, LIES[lie], **size), without)
        except Exception as error:
            raise AssertionError(f"{rule}: {lie}") from error


def _check(found: Outcome, without: Outcome) -> None:
    """All honest devices finish; what they hear is as without the liars but for their weight."""
    reported = {told.name for told in found.report.reports}
    assert reported >= set(found.honest)
    assert set(found.report.lost) | reported == set(found.devices)
    assert set(found.report.lost) <= set(found.liars)
    names = found.report.device_names
    matrix = dict(zip(names, found.report.similarity, strict=True))
    for name in found.honest:
        row = dict(zip(names, matrix[name], strict=True))
        # Nobody outweighs the device itself.
        assert max(row.get(liar, 0.0) for liar in found.liars) <= row[name] * (1 + 1e-6)
        _check_ratios(name, found, without)
        device, alone = found.devices[name], without.devices[name]
        assert len(device.heard) == len(device.headers) == 2
        for heard, expected in zip(device.heard, alone.heard, strict=True):
            assert all(bool(values.isfinite().all()) for values in heard.values())
            if not heard:  # masked, and the sum spoilt: the device uses its own set
                continue
            if not set(found.liars) & set(names):
                torch.testing.assert_close(heard, expected, rtol=1e-4, atol=1e-6)
            assert sum(float(v.double().sum()) for v in heard.values()) == pytest.approx(
                1, abs=1e-3
            )
        _check_headers(device)


def _check_ratios(name: str, found: Outcome, without: Outcome) -> None:
    """Honest peers weigh against the device itself as they do without liars, within a third."""

    def ratios(outcome: Outcome) -> np.ndarray:
        report = outcome.report
        own = report.similarity[report.device_names.index(name)]
        row = dict(zip(report.device_names, own, strict=True))
        return np.array([row[peer] / row[name] for peer in outcome.honest])

    assert (np.abs(ratios(found) - ratios(without)) < 0.35).all()


def _check_headers(device: Played) -> None:
    """A mixed header is no further from the coarse one than twice an honest update, times √5."""
    assert device.assignment is not None
    start = device.assignment.header
    size = sum(tensor.numel() for tensor in start.values())
    longest = 1.2 * CHANGE * size**0.5
    for header in filter(None, device.headers):
        moved = sum(float((header[k] - start[k]).square().sum()) for k in start) ** 0.5
        assert moved <= 2 * longest * 5**0.5


def test_sets_of_liars_move_a_mixture_by_at_most_twice_their_weight(
    stage: Callable[..., Outcome],
) -> None:
    honest = stage("importance, debiased", None)
    lying = stage("importance, debiased", LIES["importance in one neuron"])
    names = honest.report.device_names
    for row, name in enumerate(NAMES[:-1]):
        weight = honest.report.similarity[row][names.index(LIAR)]
        for true, heard in zip(honest.devices[name].heard, lying.devices[name].heard, strict=True):
            change = sum(float((true[k] - heard[k]).abs().sum()) for k in true)
            assert change <= 2 * weight + 1e-5
        assert honest.devices[name].heard[0].keys() == true.keys()


def test_device_that_lies_about_its_limits_is_out_for_good_and_named(
    stage: Callable[..., Outcome],
) -> None:
    found = stage("importance, debiased", LIES["one byte of storage"])
    assert found.devices[LIAR].assignment is None
    assert "claims to store 1 bytes, the fleet file says 60000" in found.report.lost[LIAR]
