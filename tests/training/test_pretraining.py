"""A reference from data alone: what it learns, that it resumes, and that a fleet takes it."""

from __future__ import annotations

import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification

from acme_fleet.cli import EXAMPLE
from acme_fleet.config.backbone import ViT
from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.config.training import Training
from acme_fleet.data.datasets import Source, load_source
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.reference import untrained_reference
from acme_fleet.errors import FleetError, RunError, WriteError
from acme_fleet.models.backbone.checkpoints import load_backbone
from acme_fleet.runs.locks import held
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.training.averaging import Averaged
from acme_fleet.training.evaluation import evaluate
from acme_fleet.training.pretraining import RECORD, Recipe, cutmix, pretrain, recipe_for

_SHAPE = ViT(hidden_size=24, layers=2, heads=2, neurons=48, patch_size=2)


def _recipe(epochs: int = 2, **changes: Any) -> Recipe:
    training = Training(epochs=epochs, batch_size=64, learning_rate=3e-3)
    return Recipe(_SHAPE, training, **{"crop_padding": 1, "cutmix": 0.5, **changes})


@pytest.fixture(scope="module")
def digits() -> Source:
    return load_source(Data())


@pytest.fixture(scope="module")
def trained(digits: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    training = Training(epochs=6, batch_size=32, learning_rate=3e-3)
    pretrain(digits, Recipe(_SHAPE, training), folder)
    return folder


def test_the_model_knows_more_than_chance_and_the_record_says_so(trained: Path, digits: Source):
    record = json.loads((trained / RECORD).read_text())
    assert record["test"]["accuracy"] > 0.3
    assert record["test"]["samples"] == len(digits.test)
    assert record["samples"] == len(digits.train)
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        ["config.json", "model.safetensors", "preprocessor_config.json", RECORD]
    )


def test_hugging_face_reads_the_same_function(trained: Path, digits: Source):
    model = AutoModelForImageClassification.from_pretrained(trained).eval()
    told = evaluate(
        CLASSIFICATION, lambda pixel_values: model(pixel_values=pixel_values).logits, digits.test
    )
    record = json.loads((trained / RECORD).read_text())
    assert told.score == pytest.approx(record["test"]["accuracy"])
    assert model.config.id2label == dict(enumerate(digits.classes))


def test_a_fleet_takes_the_model_with_its_classifier(trained: Path, digits: Source):
    fleet = Fleet.from_yaml(EXAMPLE)
    reference = fleet.reference.model_copy(update={"checkpoint": trained})
    backbone = fleet.backbone.model_copy(update={"depths": [1, 2]})
    fleet = fleet.model_copy(update={"reference": reference, "backbone": backbone})
    world = load_world(fleet)
    model = untrained_reference(fleet, world.public, world.classes).eval()
    told = evaluate(CLASSIFICATION, model, digits.test).score
    assert told == pytest.approx(json.loads((trained / RECORD).read_text())["test"]["accuracy"])


def test_weights_that_were_changed_are_refused(trained: Path, tmp_path: Path):
    copied = Path(shutil.copytree(trained, tmp_path / "model"))
    load_backbone(copied)
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FleetError, match=r"model\.safetensors is damaged or another model's"):
        load_backbone(copied)
    (copied / RECORD).unlink()  # as the message says, where the change is meant
    load_backbone(copied)


class _StoppedError(Exception):
    pass


def test_an_interrupted_training_ends_as_if_it_had_not_been(digits: Source, tmp_path: Path):
    few = Source(digits.train[:200], digits.test[:50], digits.classes, digits.preprocessing)
    whole = pretrain(few, _recipe(), tmp_path / "whole")

    def stop(done: int, total: int, note: str) -> None:
        raise _StoppedError

    with pytest.raises(_StoppedError):
        pretrain(few, _recipe(), tmp_path / "parts", progress=stop)
    seen = []
    parts = pretrain(
        few, _recipe(), tmp_path / "parts", progress=lambda done, total, note: seen.append(done)
    )
    assert seen == [2]
    assert parts == whole
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_folder_of_something_else_is_left_alone(trained: Path, digits: Source, tmp_path: Path):
    with pytest.raises(RunError, match="finished model"):
        pretrain(digits, _recipe(), trained)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(RunError, match="not an empty directory"):
        pretrain(digits, _recipe(), tmp_path)
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / RECORD).write_text('{"recipe": {}, "samples": 3}')
    with pytest.raises(RunError, match="other data or options: repeat that"):
        pretrain(digits, _recipe(), begun)


def test_one_process_at_a_time_trains_in_a_folder(digits: Source, tmp_path: Path):
    with held(tmp_path / "model"), pytest.raises(RunError, match="is in use by process"):
        pretrain(digits, _recipe(), tmp_path / "model")


def test_damaged_record_is_named(trained: Path, digits: Source, tmp_path: Path):
    shutil.copytree(trained, tmp_path / "model")
    path = tmp_path / "model" / RECORD
    for content in ("{", "[]", path.read_text().replace('"samples": ', '"samples": 1')):
        path.write_text(content)
        with pytest.raises(RunError, match=rf"cannot read {path}: "):
            pretrain(digits, _recipe(), tmp_path / "model")


@pytest.mark.parametrize("size", [20, 4_000, 60_000])
def test_full_disk_says_that_the_same_command_goes_on(digits: Source, tmp_path: Path, size: int):
    """At the record, at the first epoch's state, at the model itself."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(WriteError) as refusal:
            pretrain(digits, _recipe(1), tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert re.match(rf"cannot write {tmp_path}/model/\S+: the file size limit", str(refusal.value))
    assert str(refusal.value).endswith("; the same command goes on with what is finished")
    pretrain(digits, _recipe(1), tmp_path / "model")


# --- the recipe's parts -----------------------------------------------------------------------


def test_the_average_is_the_exponential_mean_of_the_weights():
    module = nn.Linear(1, 1, bias=False)
    model, horizon = Averaged(module, 10), 10
    values, expected = [3.0, 5.0, -2.0], None
    for value in values:
        with torch.no_grad():
            module.weight.fill_(value)
        model.update()
        share = 1 / horizon
        expected = value if expected is None else (1 - share) * expected + share * value
    one = {"input": torch.ones(1, 1)}
    with torch.no_grad():
        assert float(model.train()(**one)) == values[-1]
        assert float(model.eval()(**one)) == pytest.approx(expected)


def test_statistics_of_normalisation_are_averaged_too():
    module = nn.BatchNorm1d(1)
    model = Averaged(module, 4)
    for value in (1.0, 5.0):
        module.running_mean = torch.tensor([value])
        model.update()
    buffers = dict(model.average.module.named_buffers())
    assert float(buffers["running_mean"]) == pytest.approx(0.75 * 1 + 0.25 * 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_named(digits: Source, tmp_path: Path):
    with pytest.raises(FleetError, match="--device: cuda is not here, PyTorch sees no CUDA GPU"):
        pretrain(digits, _recipe(), tmp_path / "model", torch_device="cuda")
    assert not (tmp_path / "model").exists()


def test_cutmix_draws_labels_by_area():
    count = 4000
    pixels = torch.arange(count).float()[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    batch = Samples({"pixel_values": pixels}, torch.arange(count), torch.ones(count).long())
    mixed = cutmix(batch, 1.0, torch.Generator().manual_seed(3))
    image = mixed.inputs["pixel_values"].flatten(1)
    own = torch.arange(count)
    share = (image != own[:, None]).float().mean(dim=1)
    pasted = share > 0  # else the other image was the same
    assert 0 < float(share[pasted][0]) < 1
    assert torch.equal(share[pasted], share[pasted][:1].expand(int(pasted.sum())))
    foreign = mixed.labels != own
    assert float(foreign.float().mean()) == pytest.approx(float(share[pasted][0]), abs=0.03)
    there = (image == mixed.labels[:, None].float()).any(dim=1)
    assert bool(there.all()), "a label must be that of one of the two images"
    untouched = cutmix(batch, 0.0, torch.Generator())
    assert untouched is batch


def test_the_recipe_suits_the_images(digits: Source):
    recipe = recipe_for(digits, "vit-tiny", Training(epochs=60))
    assert (recipe.model.patch_size, recipe.crop_padding) == (1, 1)
    assert (recipe.flip, recipe.cutmix) == (False, 0.5)
    colour = Samples(
        {"pixel_values": torch.zeros(2, 3, 32, 32)}, torch.zeros(2).long(), torch.ones(2).long()
    )
    source = Source(colour, colour, ["a", "b"], digits.preprocessing, np.zeros(2))
    short = recipe_for(source, "vit-micro", Training(epochs=10))
    assert (short.model.patch_size, short.flip, short.cutmix) == (4, True, 0.0)
    with pytest.raises(FleetError, match="vit-huge"):
        recipe_for(digits, "vit-huge", Training(epochs=1))
