"""Language models as they ship: cut with whole key/value groups, and generating with a cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedModel,
)

import acme_fleet
from acme_fleet.cost.variant import Variant
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.errors import FleetError, RunError
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.auto_language import AcmeForCausalLM
from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.backbone.elastic import as_elastic, with_vocabulary
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.features import (
    CustomizedModel,
    LanguageModel,
    feature_maps,
    judging,
    language_logits,
    language_weight,
)
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.models.shipped import load_device_model, save_device_model
from acme_fleet.models.storage import backbone_from, sent_backbone
from acme_fleet.tasks.base import ABSENT
from acme_fleet.tasks.generation import GENERATION
from tiny_language import tiny_llama

Plain = Callable[..., PreTrainedModel]
DECODERS = ("llama", "qwen2", "mistral", "smollm3", "qwen3", "gemma3_text")


def _language(plain_backbone: Plain, family: str, kind: str) -> LanguageModel:
    plain, own = plain_backbone(family), {}
    plain.config.language_head = kind
    if kind == "own":
        shape = (plain.config.vocab_size, plain.config.hidden_size)
        own = {"lm_head.weight": torch.randn(shape, generator=torch.Generator().manual_seed(3))}
    backbone = as_elastic(plain, own)
    backbone.config.pooling = "mean"
    return LanguageModel(backbone)


def _header(hidden: int) -> Header:
    block = Block(inputs=(0, 1), operations=("conv3", "downsample"))
    last = Block(inputs=(2, 1), operations=("avg_pool", "max_pool"))
    genotype = Genotype(blocks=(block, last), cells=1, channels=4)
    plan = HeaderPlan(genotype=genotype, hidden=hidden, classes=hidden, axes=1, pooled=0)
    draw = torch.Generator().manual_seed(2)
    shapes = plan.shapes().items()
    return build_header(plan, {name: torch.randn(s, generator=draw) for name, s in shapes})


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("kind", ["tied", "own"])
def test_a_cut_model_is_the_sub_network(
    plain_backbone: Plain, make_inputs: Callable[..., dict[str, Tensor]], family: str, kind: str
):
    whole, inputs = _language(plain_backbone, family, kind), make_inputs(family)
    sizes = ElasticClassifier(whole).sizes
    draw = torch.Generator().manual_seed(0)
    ordered = reorder_classifier(
        whole,
        torch.rand(sizes.layers, sizes.heads, generator=draw),
        torch.rand(sizes.layers, sizes.neurons, generator=draw),
        torch.rand(sizes.hidden, generator=draw),
    )
    assert isinstance(ordered, LanguageModel)
    real = inputs["attention_mask"][:, None] != 0
    torch.testing.assert_close(
        torch.where(real, ordered(**inputs), 0.0),
        torch.where(real, whole(**inputs), 0.0),
        rtol=1e-3,
        atol=1e-3,
    )
    elastic = ElasticClassifier(ordered)
    arch = elastic.shape(Variant(0.67, 2, 0.5))
    assert set(arch.heads) == {2}  # of three key/value groups, with their queries
    run, small = elastic.run(arch, inputs), LanguageModel(elastic.extract(arch))
    torch.testing.assert_close(small(**inputs), run.logits, rtol=1e-4, atol=1e-5)
    names = small.state_dict().keys()
    assert ("backbone.lm_head.weight" in names) == (kind == "own")
    sent = backbone_from(**_sent(small.backbone))
    torch.testing.assert_close(LanguageModel(sent)(**inputs), run.logits, rtol=1e-4, atol=1e-5)


def _sent(backbone: PreTrainedModel) -> dict[str, Any]:
    fields = sent_backbone(backbone)
    return {"config": fields["config"], "tensors": fields["backbone"]}


@pytest.mark.parametrize("kind", ["tied", "own"])
def test_a_cut_vocabulary_keeps_the_rows_of_words_and_head(
    plain_backbone: Plain, make_inputs: Callable[..., dict[str, Tensor]], kind: str
):
    whole, inputs = _language(plain_backbone, "llama", kind), make_inputs("llama")
    kept = sorted({int(n) for n in inputs["input_ids"].flatten()} | {0})
    small = LanguageModel(with_vocabulary(whole.backbone, kept))
    places = torch.tensor([kept.index(int(n)) for n in inputs["input_ids"].flatten()])
    renumbered = {**inputs, "input_ids": places.reshape(inputs["input_ids"].shape)}
    torch.testing.assert_close(small(**renumbered), whole(**inputs)[:, kept])


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_keeps_its_logits(tmp_path: Path, tied: bool):
    tiny_llama(tmp_path, tied=tied)
    plain = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    ours = LanguageModel(load_language_model(tmp_path))
    ids = torch.randint(1, 26, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(input_ids=ids), plain(input_ids=ids).logits.transpose(1, 2))


def test_an_encoder_writes_no_text(text_checkpoint: Path):
    with pytest.raises(FleetError, match="a bert writes no text; decoders are llama, "):
        load_language_model(text_checkpoint)


def test_outputs_of_headers_go_through_the_frozen_head(
    plain_backbone: Plain, make_inputs: Callable[..., dict[str, Tensor]]
):
    backbone, inputs = _language(plain_backbone, "llama", "own").backbone, make_inputs("llama")
    maps, header = feature_maps(backbone, inputs), _header(24)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, ABSENT)
    through = judging(GENERATION, backbone).loss(header(**maps), labels)
    logits = CustomizedModel(backbone, header)(**inputs)
    torch.testing.assert_close(through, GENERATION.loss(logits, labels))
    assert logits.shape == (4, 30, 7)
    torch.testing.assert_close(logits, language_logits(backbone, header(**maps)))


@pytest.mark.parametrize("family", DECODERS)
def test_tokens_one_by_one_with_a_cache_get_the_logits_of_all_at_once(
    plain_backbone: Plain, family: str
):
    backbone = _language(plain_backbone, family, "tied").backbone
    model, ids = AcmeForCausalLM.of(backbone, _header(24)), torch.arange(1, 10)[None]
    whole = model(input_ids=ids).logits
    assert float(model(input_ids=ids, labels=ids).loss.detach()) == pytest.approx(
        float(F.cross_entropy(whole[0, :-1].detach(), ids[0, 1:])), rel=1e-5
    )
    cache, rows = DynamicCache(config=model.config), []
    for part in ids.split([3, 1, 2, 1, 1, 1], dim=1):
        rows.append(model(input_ids=part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(rows, dim=1), whole, rtol=1e-3, atol=1e-4)
    ours = CustomizedModel(backbone, model.header)(input_ids=ids)
    torch.testing.assert_close(ours.transpose(1, 2), whole, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = tiny_llama(tmp_path_factory.mktemp("llama"))
    path = tmp_path_factory.mktemp("device")
    backbone, header = load_language_model(checkpoint), _header(24)
    rule = LanguagePreprocessing.of_checkpoint(checkpoint, 16)
    save_device_model(path, CustomizedModel(backbone, header), header, ["texts"], rule, ["texts"])
    return path


def test_a_folder_generates_alike_with_and_without_a_cache(folder: Path):
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["turn light on", "what is weather sun wind"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert not inputs["attention_mask"][0, 0]  # padding stands before a text
    wanted = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    cached = model.generate(**inputs, **wanted)
    assert torch.equal(cached, model.generate(**inputs, **wanted, use_cache=False))
    assert len({tuple(row) for row in cached[:, -9:].tolist()}) == 2
    for text, row in zip(texts, cached, strict=True):  # alone, without padding
        alone = tokenizer([text], return_tensors="pt")["input_ids"]
        assert torch.equal(model.generate(input_ids=alone, **wanted)[0, -9:], row[-9:])
    beams = [model.generate(**inputs, **wanted, num_beams=2, use_cache=c) for c in (True, False)]
    assert torch.equal(*beams)


def test_a_folder_is_one_model_whoever_reads_it(folder: Path, tmp_path: Path):
    model, ours = AutoModelForCausalLM.from_pretrained(folder), load_device_model(folder)
    ids = torch.arange(1, 9)[None]
    torch.testing.assert_close(ours(ids).transpose(1, 2), model(ids).logits)
    assert model.generation_config.eos_token_id == 2
    assert isinstance(acme_fleet.load(folder), CustomizedModel)
    with pytest.raises(RunError, match="load it with AutoModelForCausalLM"):
        AutoModel.from_pretrained(folder)
    weight = language_weight(model.backbone.config)
    model.backbone.get_parameter(weight).data.mul_(2)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
