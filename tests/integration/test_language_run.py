"""A fleet whose devices write: from a LLaMA to `acme predict`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from acme_fleet import open_run
from acme_fleet.cli import app
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.partition import HostData, load_world
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.inspection.examples import find_examples
from acme_fleet.links.wire import read_message
from acme_fleet.messages.edge_device import HeaderAssignment
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.features import CustomizedModel, feature_samples, judging
from acme_fleet.models.header.module import LinearChange, build_header
from acme_fleet.models.shipped import load_device_model
from acme_fleet.models.storage import backbone_from, read_tensors
from acme_fleet.pipeline import customize
from acme_fleet.runs.directory import RunDirectory
from acme_fleet.runs.journal import Observer
from acme_fleet.runs.summary import Summary
from acme_fleet.tasks.generation import GENERATION
from acme_fleet.training.evaluation import evaluate
from acme_fleet_runtime.manifest import TokenAccuracy, read_manifest
from tiny_language import language_settings, tiny_llama, written, written_rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> tuple[Path, Summary]:
    folder = tmp_path_factory.mktemp("answers")
    data = written_rows(folder / "rows.jsonl", 220, answers=True)
    changes: dict[str, Any] = {
        "backbone.hidden": [0.75, 1.0],
        "backbone.distillation.recovery": {"epochs": 1, "batch_size": 16},
        "personalization.prune_share": 0.34,
        "personalization.lora_rank": 2,
        "personalization.rivals": True,
    }
    fleet = Fleet.parse(language_settings(data, checkpoint, **changes))
    return folder / "run", customize(fleet, folder / "run")


def test_every_device_reports_the_loss_of_what_it_ships(run: tuple[Path, Summary]):
    path, summary = run
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    for device in summary.devices:
        test = world.private[device.name].test
        model = load_device_model(path / "devices" / device.name)
        found = evaluate(GENERATION, model, test)
        assert device.language is not None
        assert device.language.loss == pytest.approx(found.loss, rel=1e-4)
        assert device.language.tokens == found.count == int((test.labels >= 0).sum())
        assert device.accuracy == pytest.approx(found.score, abs=1e-6)
        assert device.language.loss < device.language.loss_coarse
        assert device.size_bytes <= 40_000
        assert device.language.tokens_per_s > 0
        assert device.language.loss_lora is not None
        assert device.language.lora_params > 0
        assert device.neurons < device.neurons_coarse


def test_the_whole_model_and_other_trainings_stand_beside(run: tuple[Path, Summary]):
    path, summary = run
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    reference = RunDirectory(path).cloud / "reference.safetensors"
    whole = untrained_reference(Fleet.from_yaml(path / "fleet.yaml"), world.public, world.classes)
    whole.load_state_dict(read_tensors(reference)[0])
    names = ["whole, float32", "whole, int8", "whole, int4", "alone", "FedAvg"]
    for device in summary.devices:
        rivals, own = device.rivals, device.language
        assert own is not None
        assert list(rivals) == names
        found = evaluate(GENERATION, whole.eval(), world.private[device.name].test)
        assert rivals["whole, float32"].loss == pytest.approx(found.loss, rel=1e-4)
        assert rivals["whole, float32"].accuracy == pytest.approx(found.score)
        losses = [rivals[name].loss for name in names]
        assert len(set(losses)) == len(names)  # no two are one model
        sizes = [rivals[name].size_bytes for name in names]
        assert sizes[0] > sizes[1] > sizes[2]
        assert sizes[3] == sizes[4] >= device.size_bytes  # they prune nothing
        assert own.loss_coarse > (rivals["alone"].loss or 0.0) > 0
    page = (path / "report.html").read_text()
    assert "Beside its rivals" in page
    assert "whole, int4" in page


def test_exact_answers_are_those_that_generate_gives(run: tuple[Path, Summary]):
    path, summary = run
    world = load_world(Fleet.from_yaml(path / "fleet.yaml"))
    device = summary.devices[0]
    assert device.language is not None
    folder = path / "devices" / device.name
    model, tokenizer = (of.from_pretrained(folder) for of in (AutoModelForCausalLM, AutoTokenizer))
    right, rows = 0, world.private[device.name].test.inputs
    for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True):
        prompt, answer = tokenizer.decode(ids[mask != 0]).split("=>")
        tokens = tokenizer(f"{prompt.removeprefix('<s> ')}=>", return_tensors="pt")["input_ids"]
        written = model.generate(tokens, max_new_tokens=2, do_sample=False)[0, tokens.shape[1] :]
        right += tokenizer.decode(written) == answer.strip()
    assert device.language.answers == len(rows["input_ids"])
    assert device.language.exact == pytest.approx(right / device.language.answers)
    assert device.language.exact > 0.5  # a third by chance


def test_commands_show_what_it_writes(run: tuple[Path, Summary]):
    path, summary = run
    name = summary.devices[0].name
    folder = str(path / "devices" / name)
    told = CliRunner().invoke(app, ["predict", folder, "turn light on =>", "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.output)
    assert answer["prompt"] == "turn light on =>"
    assert answer["text"]
    own = CliRunner().invoke(app, ["predict", str(path), "--device", name])
    assert f"{name}: token accuracy" in own.output
    assert summary.devices[0].language is not None
    tests, tokens = summary.devices[0].test_samples, summary.devices[0].language.tokens
    assert f"on its {tests} test samples, {tokens} tokens" in " ".join(own.output.split())
    assert own.output.count("=> | ") == own.output.count("    in the data: ") == 5
    assert "perplexity" in own.output
    explained = CliRunner().invoke(app, ["explain", str(path), "--device", name])
    assert "Perplexities of the three: " in explained.output
    assert ", share of tokens: coarse header" in " ".join(explained.output.split())
    page = (path / "report.html").read_text()
    assert "What each device writes" in page
    assert "of the tokens right" in page
    assert "hidden state</text>" in page
    for word in ("[CLS] token", "Wilson", "Classes, and which", "0 classes"):
        assert word not in page.partition("<dl")[0]
    long = CliRunner().invoke(app, ["predict", folder, "on", "--tokens", "90"])
    assert "with 90 new ones that is more than the 64 that the model takes" in long.output
    data = str(path.parent / "rows.jsonl")
    assert "is a file, and a language model takes prompts" in _told("predict", folder, data)
    assert "holds JSON; --lines takes plain texts" in _told("predict", folder, "--lines", data)
    assert "--top counts classes" in _told("predict", folder, "on", "--top", "2")
    prompts = path.parent / "prompts.txt"
    prompts.write_text("turn light on =>\n\nturn light =>\n")
    lines = _told("predict", folder, "--lines", str(prompts), "--tokens", "2").splitlines()
    assert [line.partition(" | ")[0] for line in lines] == ["turn light on =>", "turn light =>"]
    chat = CliRunner().invoke(app, ["predict", folder, "on", "--chat"])
    assert "messages need a chat template" in chat.output
    told = CliRunner().invoke(app, ["export", str(path), "--all", "--format", "executorch"])
    assert "--format executorch takes no language models; " in told.output


def test_an_artifact_has_the_losses_of_the_run(run: tuple[Path, Summary], tmp_path: Path):
    path, summary = run
    device = summary.devices[0]
    wish = ["--device", device.name, "--format", "safetensors", "--out", str(tmp_path / "out")]
    told = CliRunner().invoke(app, ["export", str(path), *wish])
    assert told.exit_code == 0, told.output
    assert "loss per token on validation" in told.stdout
    manifest = read_manifest(tmp_path / "out")
    losses = {one.data: one for one in manifest.accuracy if isinstance(one, TokenAccuracy)}
    assert losses.keys() == {"validation", "test"}
    assert device.language is not None
    assert losses["test"].artifact_loss == pytest.approx(device.language.loss, rel=1e-4)
    assert losses["test"].artifact_loss == losses["test"].pytorch_loss
    assert manifest.limit is not None
    assert manifest.limit.fits
    answered = CliRunner().invoke(app, ["predict", str(tmp_path / "out"), "turn light on =>"])
    assert answered.stdout.startswith("turn light on => | ")


def test_a_report_shows_prompts_and_expected_answers(run: tuple[Path, Summary]):
    path, summary = run
    examples = find_examples(path)[summary.devices[0].name]
    asked = [json.loads(line) for line in (path.parent / "rows.jsonl").read_text().splitlines()]
    known = {(row["prompt"], row["answer"]) for row in asked}
    assert len(examples) == 4
    assert {(one.text, one.label) for one in examples} <= known
    assert not any(one.judged for one in examples)


def test_a_chat_without_a_template_is_refused_from_python_too(run: tuple[Path, Summary]):
    device = open_run(run[0]).device(run[1].devices[0].name)
    assert len(device.complete("turn light on =>", tokens=3)) == 1
    with pytest.raises(FleetError, match="messages need a chat template"):
        device.complete("on", chat=True)


def _told(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments)).output


@pytest.mark.slow
def test_contenders_are_causal_headers_alone(tmp_path: Path, checkpoint: Path):
    data = written_rows(tmp_path / "rows.jsonl", 100, answers=False)
    changes = {"search.rivals": True, "backbone.depths": [2]}
    fleet = Fleet.parse(language_settings(data, checkpoint, **changes))
    (cluster,) = customize(fleet, tmp_path / "run").clusters
    names = {contender.name for contender in cluster.contenders}
    assert names == {"random", "linear", "evolution", "controller"}  # none that reads a whole text


class _Stop(Observer):
    def stage(self, actor: str, name: str, done: int, total: int, note: str = "") -> None:
        if name == "round 1":
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "budget", ["1 kB", pytest.param("1 MB", marks=pytest.mark.slow)], ids=["anew", "kept"]
)
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, checkpoint: Path, budget: str):
    data = written_rows(tmp_path / "rows.jsonl", 100, answers=False)
    changes = {"reference.training.epochs": 1, "backbone.depths": [2]}
    changes |= {"personalization.feature_budget": budget}
    fleet = Fleet.parse(language_settings(data, checkpoint, **changes))
    customize(fleet, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        customize(fleet, tmp_path / "stopped", observer=_Stop())
    kept = list((tmp_path / "stopped/devices").glob("*/state/features.safetensors"))
    assert bool(kept) == (budget == "1 MB")
    customize(fleet, tmp_path / "stopped", resume=True)
    for name in ("helper-1", "helper-2"):
        models = [
            (tmp_path / run / "devices" / name / "model.safetensors").read_bytes()
            for run in ("whole", "stopped")
        ]
        assert models[0] == models[1]
    summary = Summary.read(tmp_path / "whole" / "summary.json")
    assert all(device.language and not device.language.answers for device in summary.devices)


def test_check_refuses_a_text_beyond_the_context(tmp_path: Path, checkpoint: Path):
    data = written_rows(tmp_path / "rows.jsonl", 60, answers=False)
    settings = language_settings(data, checkpoint, **{"data.max_tokens": 65})
    with pytest.raises(FleetError, match=r"data\.max_tokens: 65 is more than the 64 tokens"):
        customize(Fleet.parse(settings), tmp_path / "run")


@torch.no_grad()
def test_features_computed_anew_are_those_that_are_kept(checkpoint: Path, tmp_path: Path):
    rule = LanguagePreprocessing.of_checkpoint(checkpoint, 12)
    items = [{"text": "turn light on"}, {"text": "sing"}, {"text": "what is weather sun wind"}]
    samples = Samples(*rule.learned(items), torch.ones(3, dtype=torch.int64))
    backbone = load_language_model(checkpoint)
    kept = feature_samples(backbone, samples, most_bytes=10**6)
    anew = feature_samples(backbone, samples, most_bytes=100)
    assert set(anew.inputs) == {"input_ids", "attention_mask"}
    task, none = judging(GENERATION, backbone), torch.zeros(24)
    header = LinearChange({"weight": torch.zeros(24, 24), "bias": none})
    both = [evaluate(task, header, each) for each in (kept, anew)]
    assert both[0].loss == pytest.approx(both[1].loss, rel=1e-5)
    torch.testing.assert_close(anew[1:2].ready().inputs["pooled"], kept.inputs["pooled"][1:2])


@pytest.mark.slow
def test_a_sentence_of_one_device_is_not_known_to_another(tmp_path: Path, checkpoint: Path):
    """A canary: what one device alone has trained on, no other device writes more readily."""
    rows = [json.loads(line) for line in _lines(written_rows(tmp_path / "r", 120, answers=False))]
    for number, row in enumerate(rows):
        row["person"] = str(number % 2)
    canary = "please wind lamp sun loud sing"
    rows += [{"text": canary, "intent": "music", "person": "0"}] * 40
    data = written(rows, tmp_path / "rows.jsonl")
    changes = {
        "data.partition": {"scheme": "natural", "column": "person"},
        "data.public": str(written_rows(tmp_path / "public.jsonl", 120, answers=False)),
        "reference.training.epochs": 2,
        "backbone.depths": [2],
        "personalization.rounds": 2,
        "personalization.local": {"epochs": 8, "batch_size": 16, "learning_rate": 0.02},
        "clusters": [
            {
                "name": name,
                "data": str(written_rows(tmp_path / f"{name}.jsonl", 40, answers=False)),
                "devices": [{"name": device, "storage": "40 kB"} for device in devices],
            }
            for name, devices in (("home", ["holder", "other"]),)
        ],
    }
    run = tmp_path / "run"
    customize(Fleet.parse(language_settings(data, checkpoint, **changes)), run)
    world = load_world(Fleet.from_yaml(run / "fleet.yaml"))
    assert isinstance(world.preprocessing, LanguagePreprocessing)
    inputs, labels = world.preprocessing.learned([{"text": canary}])
    one = Samples(inputs, labels, torch.ones(1, dtype=torch.int64))
    loss = {
        name: evaluate(GENERATION, load_device_model(run / "devices" / name), one).loss
        for name in ("holder", "other")
    }
    assert loss["holder"] < loss["other"] - 0.5
    received = _coarse_loss(run / "devices/other", one)
    assert loss["other"] > received - 0.1  # no more known than before any device had trained
    for path in run.rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".json", ".html"):
            assert canary not in path.read_text(errors="replace"), path


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _coarse_loss(device: Path, samples: Samples) -> float:
    message = read_message(device / "state/assignment.safetensors", HeaderAssignment)
    backbone = backbone_from(message.config, message.backbone)
    header = build_header(HeaderPlan.model_validate(message.plan), message.header)
    return evaluate(GENERATION, CustomizedModel(backbone, header), samples).loss


def test_a_host_of_its_own_reads_the_same_texts(run: tuple[Path, Summary]):
    fleet = Fleet.from_yaml(run[0] / "fleet.yaml")
    world = load_world(fleet)
    host = HostData.read(fleet, "helper-1")
    own = host.splits("helper-1", world.classes, world.preprocessing)
    for part in ("train", "validation", "test"):
        here, there = (getattr(splits, part) for splits in (own, world.private["helper-1"]))
        assert torch.equal(here.inputs["input_ids"], there.inputs["input_ids"])
        assert torch.equal(here.labels, there.labels)
