"""A device's model of any family and precision, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel

from acme_fleet.config.backbone import Pooling
from acme_fleet.config.devices import Precision
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.messages.header_plan import Block, Genotype, HeaderPlan
from acme_fleet.models.backbone.elastic import Architecture, as_elastic, extract
from acme_fleet.models.backbone.precision import pack
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import CustomizedModel, feature_sizes, map_axes
from acme_fleet.models.header.module import build_header, initial_tensors, prune
from acme_fleet.models.shipped import save_device_model
from acme_fleet.models.storage import backbone_from, config_document

CLASSES, CHANNELS = 3, 4
NAMES = ["ant", "bee", "cat"]
RULE = ImagePreprocessing.centred(8, 8, 1)


def device_model(plain: PreTrainedModel, precision: Precision, pooling: Pooling) -> CustomizedModel:
    """Layers of uneven widths, rounded, and a header half of which is pruned."""
    elastic = as_elastic(plain)
    sizes = dimensions(elastic.config)
    heads = tuple(1 + layer % sizes.heads for layer in range(sizes.layers))
    neurons = tuple(3 + 2 * layer for layer in range(sizes.layers))
    small = extract(elastic, Architecture(tuple(range(sizes.layers)), heads, neurons))
    config = {**config_document(small), "precision": precision, "pooling": pooling}
    backbone = backbone_from(config, pack(small.state_dict(), precision))
    features = feature_sizes(backbone.config)
    block = Block(inputs=(0, 1), operations=("conv3", "avg_pool"))
    genotype = Genotype(blocks=(block,), cells=1, channels=CHANNELS)
    plan = HeaderPlan(
        genotype=genotype,
        hidden=features.hidden,
        classes=CLASSES,
        axes=features.axes,
        pooled=features.pooled,
    )
    tensors = initial_tensors(plan.shapes(), torch.Generator().manual_seed(1))
    header = build_header(plan, {name: tensor + 0.1 for name, tensor in tensors.items()})
    layer = next(iter(plan.layers))
    return CustomizedModel(backbone, prune(header, {layer: (0, 2)})).eval()


def shipped_folder(
    plain: PreTrainedModel, precision: Precision, pooling: Pooling, folder: Path
) -> Path:
    """The folder that a device gets of such a model; texts are of the words w2 to w29."""
    model = device_model(plain, precision, pooling)
    texts = map_axes(model.backbone.config) == 1
    save_device_model(folder, model, model.header, NAMES, _of_words() if texts else RULE, NAMES)
    return folder


def _of_words() -> TextPreprocessing:
    known = {"[PAD]": 0, "[UNK]": 1, **{f"w{number}": number for number in range(2, 30)}}
    tokenizer = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return TextPreprocessing(tokenizer=json.loads(tokenizer.to_str()), max_tokens=16, pad_id=0)
