"""Checkpoints as they lie on disk, in the names of transformers 4, load as the same functions."""

import json
import os
import re
import shutil

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from acme_fleet.config.data import Data
from acme_fleet.config.fleet import Fleet
from acme_fleet.data.checkpoint_images import read_normalization
from acme_fleet.data.datasets import load_source
from acme_fleet.data.image import ImageSize, Normalization
from acme_fleet.data.partition import load_world
from acme_fleet.data.samples import Samples, Splits
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.distillation.reference import check_reference, untrained_reference
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import load_backbone, load_head, read_checkpoint
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.families import FAMILIES
from acme_fleet.models.features import activations
from acme_fleet.models.shape import ModelShape

IMAGE = {
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}
PADDED = {"pad_token_id": 1}
SPECIAL = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
SPECIAL |= dict.fromkeys(("cls_token_id", "sep_token_id"), 0)
DECODER = BERT | {"num_key_value_heads": 2, "tie_word_embeddings": False}
WIDE = DECODER | {"head_dim": 6}
DISTILBERT = {
    "vocab_size": 40,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 24,
    "max_position_embeddings": 12,
}
PETS = {0: "cat", 1: "dog", 2: "eel"}
DINOV2 = {name: value for name, value in IMAGE.items() if name != "intermediate_size"}
DINOV2 |= {"mlp_ratio": 2, "id2label": PETS}

MODELS = {
    "vit": (hf.ViTConfig, hf.ViTForImageClassification, IMAGE | {"id2label": PETS}),
    "deit": (hf.DeiTConfig, hf.DeiTForImageClassificationWithTeacher, IMAGE | {"id2label": PETS}),
    "dinov2": (hf.Dinov2Config, hf.Dinov2ForImageClassification, DINOV2),
    "clip_vision_model": (hf.CLIPVisionConfig, hf.CLIPVisionModel, IMAGE),
    "siglip_vision_model": (hf.SiglipVisionConfig, hf.SiglipVisionModel, IMAGE),
    "bert": (hf.BertConfig, hf.BertForMaskedLM, BERT),
    "roberta": (hf.RobertaConfig, hf.RobertaForMaskedLM, BERT | PADDED),
    "xlm-roberta": (hf.XLMRobertaConfig, hf.XLMRobertaForMaskedLM, BERT | PADDED),
    "mpnet": (hf.MPNetConfig, hf.MPNetForMaskedLM, BERT | PADDED),
    "modernbert": (hf.ModernBertConfig, hf.ModernBertForMaskedLM, BERT | SPECIAL),
    "distilbert": (hf.DistilBertConfig, hf.DistilBertForMaskedLM, DISTILBERT),
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, DECODER),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, DECODER),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, WIDE),
    "smollm3": (hf.SmolLM3Config, hf.SmolLM3ForCausalLM, DECODER | {"pad_token_id": 0}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, WIDE),
    "gemma3_text": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, WIDE),
}

IMAGE_NAMES_4 = (
    (r"\blayers\.(\d+)\.", r"encoder.layer.\1."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
)


def old_name(name, kind):
    """A tensor's name in transformers 4; only the image families were renamed since."""
    for new, old in IMAGE_NAMES_4 if kind in ("vit", "deit") else ():
        name = re.sub(new, old, name)
    return name


def tiny(kind):
    torch.manual_seed(0)
    config_class, model_class, options = MODELS[kind]
    model = model_class(config_class(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms begin as constants: tell them apart
            parameter.normal_(0, 0.3)
    return model


def write_checkpoint(folder, model, kind):
    """The two files of a checkpoint as transformers 4 wrote them."""
    folder.mkdir(exist_ok=True, parents=True)
    tensors = {old_name(n, kind): t.contiguous().clone() for n, t in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _, model_class, options = MODELS[kind]
    content = {
        "model_type": kind,
        "architectures": [model_class.__name__],
        "transformers_version": "4.8.2",
        **options,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return str(folder)


def inputs_of(kind):
    generator = torch.Generator().manual_seed(1)
    if FAMILIES[kind].grid == "image":
        return {"pixel_values": torch.rand(3, 3, 8, 8, generator=generator)}
    words = torch.randint(1, 40, (3, 7), generator=generator)
    return {"input_ids": words, "attention_mask": torch.ones_like(words)}


@pytest.fixture(params=FAMILIES)
def kind(request):
    return request.param


def test_the_backbone_is_the_checkpoint(tmp_path, kind):
    model = tiny(kind)
    path = write_checkpoint(tmp_path / kind, model, kind)
    names = load_file(tmp_path / kind / "model.safetensors").keys()
    if kind == "vit":
        assert "vit.encoder.layer.0.attention.attention.query.weight" in names
    backbone = load_backbone(path)
    inputs = inputs_of(kind)
    with torch.no_grad():
        expected = model.base_model(**inputs).last_hidden_state
        actual = backbone(**inputs).last_hidden_state
    torch.testing.assert_close(actual, expected)
    assert backbone.config.heads_per_layer == (
        [2, 2] if "num_key_value_heads" in MODELS[kind][2] else [4, 4]
    )


def test_the_backbone_without_a_task_is_found_too(tmp_path, kind):
    model = tiny(kind).base_model
    path = write_checkpoint(tmp_path / kind, model, kind)
    inputs = inputs_of(kind)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        torch.testing.assert_close(load_backbone(path)(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_model_of_images_and_texts_the_image_encoder_is_taken(tmp_path, kind):
    config_class, model_class, text = {
        "clip": (hf.CLIPConfig, hf.CLIPModel, hf.CLIPTextConfig),
        "siglip": (hf.SiglipConfig, hf.SiglipModel, hf.SiglipTextConfig),
    }[kind]
    words = text(**{**BERT, "bos_token_id": 1, "eos_token_id": 2})
    config = config_class(text_config=words.to_dict(), vision_config=IMAGE)
    model = model_class(config).eval()
    model.save_pretrained(tmp_path)
    assert "text_model.encoder.layers.1.mlp.fc1.weight" in load_file(tmp_path / "model.safetensors")
    backbone, inputs = load_backbone(tmp_path), inputs_of(f"{kind}_vision_model")
    assert backbone.config.model_type == f"acme_{kind}_vision_model"
    with torch.no_grad():
        expected = model.vision_model(**inputs)
        torch.testing.assert_close(backbone(**inputs)[0], expected.last_hidden_state)
        pooled = activations(backbone, inputs).pooled
    torch.testing.assert_close(pooled, expected.pooler_output)
    rule = read_normalization(tmp_path)
    assert rule.size == ImageSize(height=8, width=8)
    assert rule.mean[0] == pytest.approx(0.481 if kind == "clip" else 0.5, abs=1e-3)


def test_half_precision_checkpoints_become_float32(tmp_path):
    path = write_checkpoint(tmp_path / "l", tiny("llama").half(), "llama")
    assert {p.dtype for p in load_backbone(path).parameters()} == {torch.float32}


def test_a_saved_elastic_backbone_comes_back(tmp_path, kind):
    backbone = as_elastic(tiny(kind).base_model)
    small = extract(backbone, Architecture((0, 1), (1, 2), (5, 20)))
    small.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.config.neurons_per_layer == [5, 20]
    with torch.no_grad():
        inputs = inputs_of(kind)
        assert torch.equal(
            loaded(**inputs).last_hidden_state, small.eval()(**inputs).last_hidden_state
        )


# --- classifiers ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_a_classifier_of_the_same_classes_is_kept(tmp_path, kind):
    model = tiny(kind)
    path = write_checkpoint(tmp_path / kind, model, kind)
    head = load_head(path, ["cat", "dog", "eel"])
    assert head is not None
    own = model.cls_classifier if kind == "deit" else model.classifier
    assert torch.equal(head.weight, own.weight)
    assert torch.equal(head.bias, own.bias)
    assert load_head(path, ["dog", "cat", "eel"]) is None
    assert load_head(path, ["cat", "dog"]) is None


def test_a_classifier_that_the_file_lacks_is_not_made_up(tmp_path):
    path = write_checkpoint(tmp_path / "v", tiny("vit").base_model, "vit")
    assert load_head(path, ["cat", "dog", "eel"]) is None


def public(channels=3, size=8):
    samples = Samples(
        {"pixel_values": torch.rand(4, channels, size, size)},
        torch.zeros(4, dtype=torch.int64),
        torch.ones(4, dtype=torch.int64),
    )
    return Splits(samples, samples, samples)


def make_fleet(checkpoint, revision=None, **others):
    cluster = {"name": "edge", "devices": [{"name": "cam", "storage": 1000}]}
    reference = {"checkpoint": checkpoint, "revision": revision}
    return Fleet.model_validate({"reference": reference, "clusters": [cluster], **others})


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_the_reference_is_the_checkpoint_with_its_classifier(tmp_path, kind):
    model, inputs = tiny(kind), inputs_of(kind)
    settings = make_fleet(write_checkpoint(tmp_path / "v", model, kind))
    reference = untrained_reference(settings, public(), ["cat", "dog", "eel"])
    with torch.no_grad():
        torch.testing.assert_close(reference(**inputs), model(**inputs).logits)
    other = untrained_reference(settings, public(), ["ant", "bee"])
    assert other.head.out_features == 2
    torch.testing.assert_close(
        other.backbone(**inputs).last_hidden_state, reference.backbone(**inputs).last_hidden_state
    )


def test_a_classifier_is_not_used_on_vectors_that_it_was_not_trained_on(tmp_path):
    path = write_checkpoint(tmp_path / "v", tiny("vit"), "vit")
    settings = make_fleet(path)
    pooled = settings.reference.model_copy(update={"pooling": "mean"})
    mean = settings.model_copy(update={"reference": pooled})
    own, fresh = (
        untrained_reference(fleet, public(), ["cat", "dog", "eel"]) for fleet in (settings, mean)
    )
    assert fresh.backbone.config.pooling == "mean"
    assert not torch.equal(own.head.weight, fresh.head.weight)


def test_without_public_labels_a_classifier_is_the_checkpoints_or_zero(tmp_path):
    model = tiny("vit")
    settings = make_fleet(write_checkpoint(tmp_path / "v", model, "vit"))
    known = public().train
    samples = Samples(known.inputs, None, known.stored_bytes)
    splits = Splits(samples, samples, samples)
    own = untrained_reference(settings, splits, ["cat", "dog", "eel"])
    other = untrained_reference(settings, splits, ["ant", "bee"])
    assert torch.equal(own.head.weight, model.classifier.weight)
    assert own.head.weight.any()
    assert not any(parameter.any() for parameter in other.head.parameters())


def test_a_reference_of_another_kind_is_refused_without_its_weights(tmp_path):
    tiny("bert").config.save_pretrained(tmp_path)
    with pytest.raises(FleetError, match="it takes texts, the data are images"):
        check_reference(make_fleet(tmp_path))
    chats = {"source": "language", "train": "chats.jsonl", "max_tokens": 8}
    with pytest.raises(FleetError, match="a bert writes no text; decoders are llama, "):
        check_reference(make_fleet(tmp_path, data=chats, task="generation"))
    check_reference(make_fleet(tmp_path, data={**chats, "source": "text"}))


def test_a_reference_must_fit_the_data(tmp_path):
    vit = make_fleet(write_checkpoint(tmp_path / "v", tiny("vit"), "vit"))
    with pytest.raises(FleetError, match=r"takes images of \(3, 8, 8\).*set data.image_size to 8"):
        untrained_reference(vit, public(size=16), ["a", "b"])
    bert = make_fleet(write_checkpoint(tmp_path / "b", tiny("bert"), "bert"))
    with pytest.raises(FleetError, match="takes texts, the data are images"):
        untrained_reference(bert, public(), ["a", "b"])
    roberta = make_fleet(write_checkpoint(tmp_path / "r", tiny("roberta"), "roberta"))
    texts = Samples(
        {name: torch.ones(4, 11, dtype=torch.int64) for name in ("input_ids", "attention_mask")},
        *(torch.zeros(4, dtype=torch.int64) for _ in range(2)),
    )
    with pytest.raises(FleetError, match=r"data.max_tokens: 11 is more than the 10 tokens"):
        untrained_reference(roberta, Splits(texts, texts, texts), ["a", "b"])
    small = extract(as_elastic(tiny("vit").base_model), Architecture((0, 1), (1, 4), (24, 24)))
    small.save_pretrained(tmp_path / "s")
    with pytest.raises(FleetError, match="narrower already"):
        untrained_reference(make_fleet(str(tmp_path / "s")), public(), ["a", "b"])


# --- what is wrong is said --------------------------------------------------------------------


def test_an_unknown_model_type_lists_those_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "swin"}))
    with pytest.raises(
        FleetError, match="'swin' is not supported; known: vit, deit, dinov2, clip_vis"
    ):
        load_backbone(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FleetError, match="known: vit"):
        load_backbone(tmp_path)


def test_missing_and_damaged_files(tmp_path, kind):
    with pytest.raises(FleetError, match="no such folder"):
        load_backbone(tmp_path / "nothing")
    folder = tmp_path / kind
    write_checkpoint(folder, tiny(kind), kind)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FleetError, match=f"cannot use {folder}"):
        load_backbone(folder)
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(FleetError, match=f"cannot use {folder}"):
        load_backbone(folder)
    weights.unlink()
    with pytest.raises(FleetError, match=f"cannot use {folder}"):
        load_backbone(folder)
    (folder / "config.json").write_text("{ not JSON")
    with pytest.raises(FleetError, match=f"cannot use {folder}"):
        load_backbone(folder)


def test_a_configuration_that_disagrees_with_its_tensors(tmp_path):
    folder = tmp_path / "v"
    write_checkpoint(folder, tiny("vit"), "vit")
    config = json.loads((folder / "config.json").read_text())
    for change in (
        {"intermediate_size": 32},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"hidden_size": 18},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(FleetError, match=f"cannot use {folder}"):
            load_backbone(folder)


def changed(folder, **keys):
    """A checkpoint of a ViT whose configuration has other keys."""
    path = write_checkpoint(folder, tiny("vit"), "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))
    return path


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config: its weights are"),
        ({"auto_map": {"AutoModel": "model.Mine"}}, "auto_map: it brings code of its own"),
        ({"hidden_act": "gelu_of_mars"}, "hidden_act: transformers knows no activation"),
        ({"num_labels": 10**9, "id2label": None}, "num_labels: should be at most 100,000"),
        ({"id2label": ["cat"]}, "id2label: should be an object"),
        ({"hidden_size": 10**9}, "hidden_size: Input should be less than"),
        ({"num_attention_heads": 0}, "num_attention_heads: Input should be greater"),
        ({"image_size": [8, 16]}, "image_size: "),
        ({"num_hidden_layers": "2"}, "num_hidden_layers: "),
        ({"intermediate_size": 2**20, "hidden_size": 2**12}, "describes [0-9,]+ numbers, the file"),
        ({"model_type": ["vit"]}, "is not supported; known: vit"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_named(tmp_path, keys, words):
    path = changed(tmp_path / "v", **keys)
    with pytest.raises(FleetError, match=f"cannot use {path}: .*{words}") as caught:
        load_backbone(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "flash_attention_2", "_attn_implementation": "flash_attention_2"},
        {"torch_dtype": "bfloat16", "use_cache": False, "return_dict": False},
        {"output_hidden_states": True, "output_attentions": True},
        {"image_size": [8, 8], "patch_size": [4, 4]},
        {"tool_of_2031": {"a": [1, 2, {"b": None}]}, "chunk_size_feed_forward": 3},
        {"quantization_config": None, "auto_map": {}},
    ],
)
def test_what_changes_nothing_in_the_function_is_left_out(tmp_path, keys):
    expected = load_backbone(write_checkpoint(tmp_path / "plain", tiny("vit"), "vit"))
    backbone = load_backbone(changed(tmp_path / "v", **keys))
    assert backbone.config.image_size == 8
    with torch.no_grad():
        outputs = [one(**inputs_of("vit")).last_hidden_state for one in (backbone, expected)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "it holds a list, no JSON object"),
        (b"null", "it holds a NoneType, no JSON object"),
        (b"", "config.json: "),
        (b"\xff\xfe", "config.json: "),
        (b"[" * 10**5, "config.json: it is nested too deeply"),
        (b'{"a": ' + b"9" * 10**4 + b"}", "config.json: "),
        (None, "it has no config.json"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, content, words):
    path = write_checkpoint(tmp_path / "v", tiny("vit"), "vit")
    (tmp_path / "v" / "config.json").unlink()
    if content is not None:
        (tmp_path / "v" / "config.json").write_bytes(content)
    with pytest.raises(FleetError, match=f"cannot use {path}: .*{words}"):
        load_backbone(path)


def test_weights_that_are_no_safetensors(tmp_path):
    folder = tmp_path / "v"
    path = write_checkpoint(folder, tiny("vit"), "vit")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(FleetError, match=r"no model\.safetensors, only pytorch_model\.bin"):
        load_backbone(path)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(FleetError, match=r"it has no model\.safetensors$"):
        load_backbone(path)
    (folder / "model.safetensors").symlink_to(tmp_path / "nothing")
    with pytest.raises(FleetError, match=f"cannot use {folder}: "):
        load_backbone(path)


def test_weights_in_several_files(tmp_path):
    model, folder = tiny("bert").bert, tmp_path / "b"
    model.save_pretrained(folder, max_shard_size="10KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    inputs = inputs_of("bert")
    with torch.no_grad():
        actual = load_backbone(folder)(**inputs).last_hidden_state
        torch.testing.assert_close(actual, model(**inputs).last_hidden_state)
    sorted(folder.glob("model-*.safetensors"))[0].unlink()
    with pytest.raises(FleetError, match=f"cannot use {folder}: "):
        load_backbone(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(FleetError, match=f"cannot use {folder}: "):
        load_backbone(folder)


@pytest.mark.parametrize(
    "named", ["../secret.safetensors", "{}/secret.safetensors", "x.bin", 5, None]
)
def test_weights_that_lie_elsewhere_are_not_read(tmp_path, named):
    folder = tmp_path / "checkpoint"
    hf.ViTModel(tiny("vit").config).save_pretrained(folder, max_shard_size="20KB")
    shutil.copy(next(folder.glob("model-*.safetensors")), tmp_path / "secret.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    other = named.format(tmp_path) if isinstance(named, str) else named
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], first: other}}))
    with pytest.raises(FleetError, match="and not a safetensors file of this folder"):
        load_backbone(folder)
    index.write_text("[]")
    with pytest.raises(FleetError, match=r"index\.json: it holds a list, no JSON object"):
        load_backbone(folder)


def test_tensors_of_another_shape_are_named(tmp_path):
    with pytest.raises(FleetError, match=r"it has another shape of .*position_embeddings"):
        load_backbone(changed(tmp_path, patch_size=4, image_size=16))


def test_what_is_no_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, words in (
        ("file", "it is a file, no folder"),
        ("link", "it is a link to nothing"),
        ("loop", ""),
        ("x" * 20, "there is no such folder"),
    ):
        with pytest.raises(FleetError, match=f"cannot use {tmp_path / name}: .*{words}"):
            load_backbone(tmp_path / name)
    with pytest.raises(FleetError, match="the name is too long"):
        load_backbone(tmp_path / ("a" * 300))
    for name in ("models/of/mine", "with space", "../x", "a\0b", "é"):
        with pytest.raises(FleetError, match=r"no such folder|embedded null"):
            load_backbone(name)


def test_an_unfinished_pretraining_says_so(tmp_path):
    path = write_checkpoint(tmp_path / "v", tiny("vit"), "vit")
    record = tmp_path / "v" / "pretraining.json"
    record.write_text(json.dumps({"recipe": {}, "samples": 9}))
    with pytest.raises(FleetError, match=r"unfinished pre-training; finish it with: .*--out"):
        load_backbone(path)
    record.write_text(json.dumps({"recipe": {}, "samples": 9, "test": {"accuracy": 0.5}}))
    load_backbone(path)
    record.write_text("{")
    with pytest.raises(FleetError, match=r"pretraining\.json"):
        load_backbone(path)


# --- code of a checkpoint, and revisions ------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_is_never_run_nor_offered(
    tmp_path, text_checkpoint, file, monkeypatch
):
    """Not even where the user would say yes."""
    folder = tmp_path / "b"
    shutil.copytree(text_checkpoint, folder)
    marker = tmp_path / "was run"
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    content = json.loads((folder / file).read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoTokenizer")
    content["auto_map"] = dict.fromkeys(names, "mine.Mine")
    (folder / file).write_text(json.dumps(content))
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail(f"asked {asked}"))
    with pytest.raises(FleetError, match="auto_map: it brings code of its own"):
        TextPreprocessing.of_checkpoint(folder, 8)
    if file == "config.json":
        with pytest.raises(FleetError, match="auto_map: it brings code of its own"):
            load_backbone(folder)
        with pytest.raises(FleetError, match="auto_map: it brings code of its own"):
            ModelShape.read(folder)
    assert not marker.exists()


def test_a_text_checkpoints_numbers_never_reach_the_tokenizers_reader(tmp_path, text_checkpoint):
    folder = tmp_path / "b"
    shutil.copytree(text_checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": 10**12}))
    one, other = (TextPreprocessing.of_checkpoint(path, 8) for path in (folder, text_checkpoint))
    assert one == other


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that has one model, whose folder it gives; what was asked is listed."""
    asked = []

    def download(name, revision=None, **_):
        asked.append((name, revision))
        if name != "owner/vit":
            raise OSError(f"{name} is not a model of this hub")
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_the_revision_is_asked_for_everywhere(tmp_path, hub):
    write_checkpoint(tmp_path / "cache", tiny("vit"), "vit")
    (tmp_path / "cache" / "preprocessor_config.json").write_text(json.dumps(IMAGENET))
    settings = make_fleet("owner/vit", revision="0123abc")
    world = load_world(settings)
    assert world.preprocessing.image_std == tuple(IMAGENET["image_std"])
    untrained_reference(settings, public(), ["cat", "dog", "eel"])
    assert set(hub) == {("owner/vit", "0123abc")}
    assert len(hub) == 3


def test_a_name_that_is_neither_folder_nor_on_the_hub_says_both(hub):
    with pytest.raises(
        FleetError, match=r"models/mine: there is no such folder, and the hub gave no .* not a mod"
    ):
        load_backbone("models/mine")


def test_a_revision_is_for_the_hub(tmp_path):
    for wrong in ("", "-x", "a b", "../x" * 60):
        with pytest.raises(ValueError, match="revision"):
            make_fleet("owner/vit", revision=wrong)
    with pytest.raises(ValueError, match="revision is for a `checkpoint` on the hub"):
        make_fleet("./mine", revision="main")
    with pytest.raises(ValueError, match="revision is for a `checkpoint` on the hub"):
        make_fleet(None, revision="main")
    (tmp_path / "owner" / "vit").mkdir(parents=True)
    with pytest.raises(FleetError, match="owner/vit is a folder"):
        make_fleet("owner/vit", revision="main").with_paths_from(tmp_path)


def test_a_folder_is_found_from_the_fleet_file(tmp_path, monkeypatch, hub):
    """Whatever the working directory is, and before the hub's model of the same name."""
    write_checkpoint(tmp_path / "fleets" / "owner" / "vit", tiny("vit"), "vit")
    content = {
        "reference": {"checkpoint": "owner/vit"},
        "clusters": [{"name": "edge", "devices": [{"name": "cam", "storage": 1000}]}],
    }
    file = tmp_path / "fleets" / "fleet.yaml"
    file.write_text(json.dumps(content))
    for place in (tmp_path, tmp_path / "fleets", tmp_path / "fleets" / "owner"):
        monkeypatch.chdir(place)
        for path in (file, os.path.relpath(file)):
            read = Fleet.from_yaml(path)
            assert read.reference.checkpoint == tmp_path / "fleets" / "owner" / "vit"
        (tmp_path / "copy.yaml").write_text(read.to_yaml())
        assert Fleet.from_yaml(tmp_path / "copy.yaml") == read
    monkeypatch.chdir(tmp_path / "fleets")
    load_backbone(Fleet.parse(content).reference.checkpoint)
    assert hub == []
    (tmp_path / "fleets" / "gone").symlink_to(tmp_path / "nothing")
    content["reference"]["checkpoint"] = "gone"
    file.write_text(json.dumps(content))
    with pytest.raises(FleetError, match="nothing: there is no such folder"):
        load_backbone(Fleet.from_yaml(file).reference.checkpoint)
    (tmp_path / "fleets" / "loop").symlink_to(tmp_path / "fleets" / "loop")
    content["reference"]["checkpoint"] = "./loop"
    with pytest.raises(FleetError, match=r"cannot use .*loop: it is a link to nothing, no folder"):
        load_backbone(Fleet.parse(content).with_paths_from(file.parent).reference.checkpoint)
    content["reference"]["checkpoint"] = "./a\0b"
    with pytest.raises(FleetError, match="cannot use the path "):
        Fleet.parse(content).with_paths_from(tmp_path / "fleets")


@pytest.mark.parametrize("key", ["image_size", "patch_size"])
def test_square_pairs_are_one_number_and_others_refused(tmp_path, key):
    folder = tmp_path / "v"
    model = tiny("vit")
    write_checkpoint(folder, model, "vit")
    config = json.loads((folder / "config.json").read_text())
    side = config[key]
    (folder / "config.json").write_text(json.dumps(config | {key: [side, side]}))
    pixels = inputs_of("vit")
    with torch.no_grad():
        torch.testing.assert_close(
            load_backbone(folder)(**pixels).last_hidden_state,
            model.base_model(**pixels).last_hidden_state,
        )
    assert getattr(read_checkpoint(folder).config, key) == side
    (folder / "config.json").write_text(json.dumps(config | {key: [side, 2 * side]}))
    with pytest.raises(FleetError, match=key):
        load_backbone(folder)


# --- normalisation ----------------------------------------------------------------------------

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def test_normalization_is_read_where_there_is_one(tmp_path):
    assert read_normalization(tmp_path) is None
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps({"do_normalize": True, "size": 224, **IMAGENET}))
    size = ImageSize(height=224, width=224)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert read_normalization(tmp_path) == Normalization(mean=mean, std=std, size=size)
    file.write_text(json.dumps({"do_normalize": False, **IMAGENET}))
    assert read_normalization(tmp_path) == Normalization(mean=(0.0,) * 3, std=(1.0,) * 3)
    for wrong in ("{", "[]", '{"image_mean": [0.5, 0.5]}', "9" * 5000, "[" * 10**5, "\xff"):
        file.write_text(wrong)
        with pytest.raises(FleetError, match="cannot read the preprocessing"):
            read_normalization(tmp_path)


def test_images_are_normalised_as_the_checkpoint_was(tmp_path):
    """Grey digits become three channels with the checkpoint's statistics."""
    mean, std = (torch.tensor(IMAGENET[k]).view(3, 1, 1) for k in ("image_mean", "image_std"))
    plain = load_source(Data())
    source = load_source(
        Data(), Normalization(mean=IMAGENET["image_mean"], std=IMAGENET["image_std"])
    )
    assert source.preprocessing.image_mean == tuple(IMAGENET["image_mean"])
    values = plain.train.inputs["pixel_values"] * 0.5 + 0.5
    torch.testing.assert_close(source.train.inputs["pixel_values"], (values - mean) / std)


def test_a_fleet_takes_its_checkpoints_statistics(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(IMAGENET))
    world = load_world(make_fleet(str(tmp_path)))
    assert world.preprocessing.image_std == tuple(IMAGENET["image_std"])
    assert world.public.train.inputs["pixel_values"].shape[1:] == (3, 8, 8)
    without = load_world(make_fleet(None))
    assert without.preprocessing.image_mean == (0.5,)


def test_the_setting_is_a_hub_name_or_a_folder(tmp_path):
    """A folder is found from the fleet file, a name stays one, and both survive YAML."""
    near = make_fleet("./theta0").with_paths_from(tmp_path)
    assert near.reference.checkpoint == tmp_path / "theta0"
    named = make_fleet("google/vit-base-patch16-224").with_paths_from(tmp_path)
    assert named.reference.checkpoint == "google/vit-base-patch16-224"
    for settings in (near, named):
        (tmp_path / "fleet.yaml").write_text(settings.to_yaml())
        assert Fleet.from_yaml(tmp_path / "fleet.yaml") == settings


def test_a_dinov2_gets_the_position_table_of_the_datas_images(tmp_path, plain_backbone):
    """Its own models make the table anew at every pass; ours hold it."""
    model = plain_backbone("dinov2")
    model.save_pretrained(tmp_path)
    pixels = torch.randn(2, 1, 12, 12)
    backbone = load_backbone(tmp_path, image_size=12)
    assert backbone.config.image_size == 12
    torch.testing.assert_close(backbone(pixels)[0], model(pixels)[0])
    with pytest.raises(FleetError, match=r"images of 7 × 7 cannot be cut into patches of 2"):
        load_backbone(tmp_path, image_size=7)
