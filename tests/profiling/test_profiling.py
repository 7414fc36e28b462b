"""``acme profile``: shapes, what is fitted, what is written, and the command itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import GPT2Config, PreTrainedModel
from typer.testing import CliRunner

from acme_fleet.cli import app
from acme_fleet.config.devices import Energy
from acme_fleet.config.fleet import Fleet
from acme_fleet.cost.energy import latency_s
from acme_fleet.cost.power import ThermalDesignPower, Unavailable, Work
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.errors import FleetError
from acme_fleet.messages.header_plan import HeaderPlan, smallest_genotype
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import CustomizedModel
from acme_fleet.models.header.module import build_header, initial_tensors
from acme_fleet.models.shape import ModelShape
from acme_fleet.models.shipped import load_device_model, save_device_model
from acme_fleet.profiling import measure as measurement
from acme_fleet.profiling.file import power_label, profile_document, write_profile
from acme_fleet.profiling.fit import Fits, Profile, check_fit, fit_constants, profile_model
from acme_fleet.profiling.measure import WIDTHS, Spread, measure_power, powers_of_two, spread_depths

MakeBackbone = Callable[..., PreTrainedModel]
NARROW = Architecture(layers=(0, 2), heads=(1, 3), neurons=(7, 2))


@dataclass
class TenJoules:
    """A source that says 10 J whatever is done, and remembers how often it was asked."""

    name: str = "ten joules"
    measured: bool = True
    least_s: float = 1e-9
    asked: int = 0

    def energy_j(self, work: Work) -> float:
        self.asked += 1
        work()
        return 10.0


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "_LEAST_S", 0.0)
    monkeypatch.setattr(measurement, "_TURNS", 2)
    monkeypatch.setattr(ThermalDesignPower, "least_s", 1e-3)


@pytest.fixture
def checkpoint(plain_backbone: MakeBackbone, tmp_path: Path) -> Path:
    plain_backbone("vit").save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


@pytest.fixture
def device_folder(plain_backbone: MakeBackbone, tmp_path: Path) -> Path:
    plan = HeaderPlan(genotype=smallest_genotype(1, 1, 4), hidden=16, classes=3, axes=2)
    header = build_header(plan, initial_tensors(plan.shapes(), torch.Generator()))
    model = CustomizedModel(extract(as_elastic(plain_backbone("vit")), NARROW), header)
    rule, names = ImagePreprocessing.centred(8, 8, 1), ["a", "b", "c"]
    save_device_model(tmp_path / "cam", model, header, names, rule, ["a"])
    return tmp_path / "cam"


# --- shapes -----------------------------------------------------------------------------------


def parameters(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpoint_of_every_family(
    family: str, plain_backbone: MakeBackbone, tmp_path: Path
) -> None:
    plain_backbone(family).config.save_pretrained(tmp_path)  # weights are not needed
    shape = ModelShape.read(tmp_path)
    assert (shape.layers, shape.header) == (3, None)
    assert shape.tokens == 16
    whole, half = shape.build(), shape.resized(0.5, 2)
    assert parameters(whole) == parameters(as_elastic(plain_backbone(family)))
    assert sum(p.numel() for p in half.parameters()) < sum(p.numel() for p in whole.parameters())
    for batch in (1, 3):
        inputs = shape.inputs(batch)
        assert half(**inputs).last_hidden_state.shape[0] == batch


def test_device_model_keeps_its_header_and_its_own_widths(device_folder: Path) -> None:
    shape = ModelShape.read(device_folder)
    assert parameters(shape.build()) == parameters(load_device_model(device_folder))
    # Widths are shares of the reference's four heads and twelve neurons, not of what is left.
    full = parameters(shape.resized(1.0, 1))
    assert full["backbone.layers.0.attention.q_proj.weight"] == (16, 16)
    assert full["backbone.layers.0.mlp.fc1.weight"] == (12, 16)
    assert {name for name in full if name.startswith("header.")} == {
        name for name in parameters(load_device_model(device_folder)) if name.startswith("header.")
    }
    assert shape.resized(0.25, 2)(**shape.inputs(5)).shape == (5, 3)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=r"holds no model: it has no config\.json"):
        ModelShape.read(tmp_path)
    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(FleetError, match="model type 'gpt2' is not supported; known: vit, deit"):
        ModelShape.read(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FleetError, match=r"cannot use .*model type"):
        ModelShape.read(tmp_path)


@pytest.mark.parametrize(
    ("layers", "depths"),
    [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (6, [2, 3, 5, 6]), (12, [3, 6, 9, 12])],
)
def test_depths_of_the_spread(layers: int, depths: list[int]) -> None:
    assert spread_depths(layers) == depths


def test_batches() -> None:
    assert [powers_of_two(n) for n in (1, 2, 7, 8)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


# --- constants --------------------------------------------------------------------------------


def make_spread(depths: list[int], power: bool = True) -> Spread:
    """T = 1 + 2·w·d + 3·d milliseconds, P = 4 + 0.5·w·d watts."""
    widths, deep = (a.ravel() for a in np.meshgrid(WIDTHS, np.array(depths, float)))
    watts = 4 + 0.5 * widths * deep if power else None
    return Spread(widths, deep, 1e-3 * (1 + 2 * widths * deep + 3 * deep), watts)


def test_constants_are_recovered() -> None:
    fits = fit_constants(make_spread([3, 6, 9, 12]))
    assert fits.with_depth is not None
    assert fits.power is not None
    found = fits.with_depth
    assert (found.base, found.per_layer, found.per_depth) == pytest.approx((1e-3, 2e-3, 3e-3))
    assert (fits.power.base, fits.power.per_layer) == pytest.approx((4, 0.5))
    assert fits.latency.max_relative_error > 0.1 > found.max_relative_error


def test_one_depth_tells_no_depth_term_and_no_source_no_power() -> None:
    fits = fit_constants(make_spread([1], power=False))
    assert (fits.with_depth, fits.power) == (None, None)
    assert fits.latency.base == pytest.approx(4e-3)
    assert fits.latency.per_layer == pytest.approx(2e-3)


# --- measuring: meaning, never speed ----------------------------------------------------------


def test_profile_of_a_checkpoint(checkpoint: Path) -> None:
    source, stages = TenJoules(), []
    found = profile_model(
        checkpoint,
        source,
        largest_batch=4,
        runs=4,
        progress=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert [cost.batch for cost in found.batches] == [1, 2, 4]
    assert all(cost.latency_s > 0 and cost.energy_j for cost in found.batches)
    peaks = [found.start_bytes, *(cost.peak_bytes for cost in found.batches)]
    assert peaks == sorted(peaks)
    assert peaks[0] > 10_000_000  # Python with torch
    assert found.tokens == 16
    assert found.params == sum(p.numel() for p in ModelShape.read(checkpoint).build().parameters())
    places = set(zip(found.spread.widths, found.spread.depths, strict=True))
    assert places == {(w, d) for w in WIDTHS for d in (1, 2, 3)}
    assert source.asked == 3 + 2 * 12  # each batch size once, each width and depth in two turns
    assert found.spread.power_w is not None
    assert found.spread.power_w.shape == (12,)
    assert stages[-1] == ("widths and depths", 24, 24)


def test_power_is_joules_by_seconds_over_enough_passes() -> None:
    passes = 0

    def run() -> None:
        nonlocal passes
        passes += 1

    source = TenJoules(least_s=0.5)
    assert measure_power(run, source, latency_s=0.1) > 0
    assert passes == 5


def test_without_a_source_there_are_no_joules(device_folder: Path) -> None:
    found = profile_model(device_folder, Unavailable("no meter"), largest_batch=1, runs=2)
    assert found.batches[0].energy_j is None
    assert found.spread.power_w is None
    assert found.fits.power is None


def test_gpu_that_is_not_there(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FleetError, match=r"finds no NVIDIA GPU .* measure without --gpu"):
        profile_model(checkpoint, TenJoules(), on_gpu=True)


# --- the file ---------------------------------------------------------------------------------


def make_profile(power: TenJoules | Unavailable) -> Profile:
    spread = make_spread([3, 6], power=isinstance(power, TenJoules))
    fits: Fits = fit_constants(spread)
    return Profile(
        "m", "pytorch", "a machine", "of the process", 16, 1000, 5, power, [], spread, fits
    )


def test_check_plans_a_fleet_with_a_profile(tmp_path: Path) -> None:
    write_profile(make_profile(TenJoules()), tmp_path / "pi4.yaml")
    (tmp_path / "fleet.yaml").write_text(
        """
        device_types: {pi4: pi4.yaml}
        devices:
          - {name: cam-1, storage: 900 kB, type: pi4}
          - {name: cam-2, storage: 800 kB, type: pi4, energy: {epochs: 5}}
        """
    )
    result = CliRunner().invoke(app, ["check", str(tmp_path / "fleet.yaml")])
    assert result.exit_code == 0, result.output
    assert "group-1 ≤ 800 kB" in result.output


def test_fleet_reads_what_is_written(tmp_path: Path) -> None:
    profile = make_profile(TenJoules())
    write_profile(profile, tmp_path / "pi4.yaml")
    content = {
        "device_types": {"pi4": "pi4.yaml"},
        "devices": [{"name": "a", "storage": 1, "type": "pi4"}],
    }
    fitted, power = profile.fits.with_depth, profile.fits.power
    assert fitted is not None
    assert power is not None
    energy = Fleet.parse(content, folder=tmp_path).devices[0].energy
    assert energy == Energy(
        power_w=float(f"{power.base:.6g}"),
        power_per_layer_w=float(f"{power.per_layer:.6g}"),
        batch_power_w=0,
        latency_s=float(f"{fitted.base:.6g}"),
        latency_per_layer_s=float(f"{fitted.per_layer:.6g}"),
        latency_per_depth_s=float(f"{fitted.per_depth:.6g}"),
    )
    widths, depths = profile.spread.widths, profile.spread.depths
    np.testing.assert_allclose(latency_s(energy, widths, depths), profile.spread.latency_s)


@pytest.mark.parametrize("measured", [True, False])
def test_every_number_says_whether_it_is_measured(measured: bool) -> None:
    source = TenJoules(measured=measured)
    labels = yaml.safe_load(profile_document(make_profile(source)))["labels"]
    word = "measured" if measured else "estimated"
    assert labels["power"] == power_label(source) == f"{word}: ten joules"
    assert labels["latency"] == "measured"
    assert labels["memory"] == "measured: of the process"


def test_file_without_power_says_why() -> None:
    content = yaml.safe_load(profile_document(make_profile(Unavailable("no RAPL here"))))
    assert content["labels"]["power"] == "none: no RAPL here"
    assert all(name.startswith("latency") for name in content["energy"])
    assert "power" not in content["fits"]


def test_residuals_stand_beside_the_measurements() -> None:
    content = yaml.safe_load(profile_document(make_profile(TenJoules())))
    row = content["spread"][0]
    assert row["fitted_with_depth_s"] == pytest.approx(row["latency_s"])
    paper = content["fits"]["latency"]
    assert row["fitted_s"] == pytest.approx(
        paper["base"] + paper["per_layer"] * row["width"] * row["depth"], rel=1e-4
    )


def test_one_depth_is_fitted_as_the_paper_does() -> None:
    spread = make_spread([2], power=False)
    nothing = Unavailable("")
    profile = Profile("m", "pytorch", "", "", 1, 1, 1, nothing, [], spread, fit_constants(spread))
    energy = yaml.safe_load(profile_document(profile))["energy"]
    assert energy["latency_per_depth_s"] == 0
    assert energy["latency_per_layer_s"] == pytest.approx(2e-3)


# --- the command ------------------------------------------------------------------------------


def test_fit_that_explains_little_is_not_written() -> None:
    profile = make_profile(TenJoules())
    check_fit(profile)
    noise = np.random.default_rng(0).permutation(profile.spread.latency_s)
    spread = replace(profile.spread, latency_s=noise)
    poor = replace(profile, spread=spread, fits=fit_constants(spread))
    with pytest.raises(FleetError, match=r"explains \d+% .* nothing was written"):
        check_fit(poor)


def test_command_measures_prints_and_writes(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So tiny a model's times are noise on a busy machine.
    monkeypatch.setattr("acme_fleet.profiling.fit.check_fit", lambda found: None)
    file = tmp_path / "here.yaml"
    arguments = ["profile", str(checkpoint), "--tdp", "9", "--device-file", str(file)]
    result = CliRunner().invoke(app, [*arguments, "--largest-batch", "2", "--runs", "5"])
    assert result.exit_code == 0, result.output
    assert "T = L + ΔL·w·d + ΔD·d" in result.output
    assert "measured" in result.output
    labels = yaml.safe_load(file.read_text())["labels"]
    assert labels["power"].startswith(("estimated: TDP 9 W", "measured: RAPL"))
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 2
    assert "exists already; it was not changed" in again.output


def test_command_explains_errors(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["profile", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no model" in result.output
