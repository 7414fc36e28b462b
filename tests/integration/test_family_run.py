"""A checkpoint of each newer family runs a fleet: cut, rounded, shipped, loaded and asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.sources.files import read_digits
from acme_fleet.inspection.predict import predict_test_data, read_preprocessing
from acme_fleet.models.families import dimensions
from acme_fleet.models.shipped import load_device_model
from acme_fleet.pipeline import customize
from acme_fleet.runs.summary import Summary
from tiny_texts import said

_PLAIN = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _merged(texts: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of a BPE on bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=340, special_tokens=_SPECIAL, initial_alphabet=alphabet),
    )
    content = json.loads(tokenizer.to_str())["model"]
    return content["vocab"], [tuple(pair) for pair in content["merges"]]


def _pieces(texts: list[str]) -> list[tuple[str, float]]:
    """Pieces and scores of a Unigram model."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        texts, trainers.UnigramTrainer(vocab_size=120, special_tokens=_SPECIAL, unk_token="<unk>")
    )
    content = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in content]


def _words(texts: list[str]) -> dict[str, int]:
    letters = sorted({letter for text in texts for letter in text if letter != " "})
    words = sorted({word for text in texts for word in text.split()})
    tokens = [*_SPECIAL, "[UNK]", *letters, *(f"##{letter}" for letter in letters), *words]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def _tokenizer(family: str, texts: list[str]) -> Any:
    if family == "mpnet":
        return hf.MPNetTokenizer(vocab=_words(texts))
    if family == "xlm-roberta":
        return hf.XLMRobertaTokenizer(vocab=_pieces(texts))
    vocabulary, merges = _merged(texts)
    if family == "roberta":
        return hf.RobertaTokenizer(vocab=vocabulary, merges=merges)
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=plain, **special)


_TEXTS: dict[str, Callable[..., Any]] = {
    "roberta": lambda **sizes: hf.RobertaConfig(**sizes, **_PLAIN),
    "xlm-roberta": lambda **sizes: hf.XLMRobertaConfig(**sizes, **_PLAIN),
    "mpnet": lambda **sizes: hf.MPNetConfig(**sizes, **_PLAIN),
    "modernbert": lambda **sizes: hf.ModernBertConfig(
        **sizes, **_PLAIN, local_attention=4, cls_token_id=0, sep_token_id=2
    ),
    "gemma3_text": lambda **sizes: hf.Gemma3TextConfig(
        **sizes, **_PLAIN, num_key_value_heads=2, head_dim=6, sliding_window=3
    ),
}
_VOCABULARY = {"roberta": 280, "modernbert": 280, "mpnet": 60, "xlm-roberta": 60}
_IMAGES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "clip_vision_model": (
        hf.CLIPVisionConfig,
        {
            "size": {"shortest_edge": 8},
            "crop_size": 8,
            "image_processor_type": "CLIPImageProcessor",
        },
    ),
    "siglip_vision_model": (
        hf.SiglipVisionConfig,
        {"size": {"height": 8, "width": 8}, "image_processor_type": "SiglipImageProcessor"},
    ),
}


def _checkpoint(family: str, folder: Path, texts: list[str]) -> None:
    """An untrained model of the library's own class, with what prepares its inputs."""
    torch.manual_seed(0)
    if family in _IMAGES:
        config_class, document = _IMAGES[family]
        config = config_class(image_size=8, patch_size=2, num_channels=3, **_PLAIN)
        folder.mkdir()
        (folder / "preprocessor_config.json").write_text(json.dumps(document))
    else:
        tokenizer = _tokenizer(family, texts)
        tokenizer.save_pretrained(folder)
        config = _TEXTS[family](
            vocab_size=len(tokenizer),
            max_position_embeddings=10,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        )
    hf.AutoModel.from_config(config).save_pretrained(folder)


def _settings(family: str, folder: Path) -> dict[str, Any]:
    rows = [row | {"room": str(n % 2)} for n, row in enumerate(said(240))]
    _checkpoint(family, folder / "checkpoint", [row["text"] for row in rows])
    raw = read_digits()
    np.savez(folder / "digits.npz", images=raw.items[:300], labels=raw.labels[:300])
    data: dict[str, Any] = {"source": "arrays", "train": str(folder / "digits.npz")}
    if family in _TEXTS:
        (folder / "said.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data = {"source": "text", "train": str(folder / "said.jsonl"), "label_column": "intent"}
        data |= {"max_tokens": 8, "partition": {"scheme": "natural", "column": "room"}}
    learning = {"batch_size": 32, "learning_rate": 0.01}
    return {
        "data": data,
        "reference": {
            "checkpoint": str(folder / "checkpoint"),
            "training": {"epochs": 1, **learning},
        },
        "backbone": {
            "widths": [0.5],
            "hidden": [0.75],
            "depths": [2],
            "precisions": ["int8", "float32"],
            "vocabulary": _VOCABULARY.get(family),
            "importance_samples": 32,
            "distillation": {"training": {"epochs": 1, **learning}},
        },
        "selection": {"performance_window": 9},
        "header": {"blocks": 1, "channels": 4},
        "search": {"steps": 1, "children_per_step": 1, "final_samples": 1, "rivals": False},
        "personalization": {"rounds": 1, "local": {"epochs": 1, "batch_size": 32}},
        "clusters": [
            {
                "name": "home",
                "devices": [{"name": name, "storage": "26 kB"} for name in ("one", "two")],
            }
        ],
    }


def _ran(family: str, folder: Path) -> tuple[Path, Summary]:
    fleet = Fleet.parse(_settings(family, folder))
    return folder / "run", customize(fleet, folder / "run")


@pytest.mark.parametrize(
    "family", [*_IMAGES, *_VOCABULARY, pytest.param("gemma3_text", marks=pytest.mark.slow)]
)
def test_a_fleet_of_a_family(family: str, tmp_path: Path) -> None:
    path, summary = _ran(family, tmp_path)
    for device in summary.devices:
        folder = path / "devices" / device.name
        model = load_device_model(folder)
        config = model.backbone.config
        assert config.model_type == f"acme_{family}"
        sizes = dimensions(config)
        assert (sizes.hidden, sizes.layers) == (12, 2)
        assert set(config.heads_per_layer) == {sizes.heads // 2}
        assert device.size_bytes == (folder / "model.safetensors").stat().st_size <= 26_000
        result = predict_test_data(path, device.name).evaluation
        assert (result.score, result.count) == (device.accuracy, device.test_samples)
        rule = read_preprocessing(folder)
        if family in _IMAGES:
            auto: Any = hf.AutoModelForImageClassification
            inputs = {"pixel_values": torch.randn(2, 3, 8, 8)}
        else:
            auto = hf.AutoModelForSequenceClassification
            inputs = rule.inputs(["play song ü", "weather"])  # letters that no text had
            assert config.vocab_size == rule.vocabulary
        with torch.no_grad():
            logits = auto.from_pretrained(folder)(**inputs).logits
            assert torch.equal(logits, model(**inputs))
