"""Torch-Pruning's Taylor pruning of a ViT, as in its own example."""

import copy
import importlib
from typing import Any

from torch.nn import functional as F

from acme_fleet.data.samples import Samples
from acme_fleet.models.families import dimensions
from acme_fleet.models.features import Classifier

tp: Any = importlib.import_module("torch_pruning")  # may be missing


def taylor_pruned(
    reference: Classifier, samples: Samples, ratio: float, way: str, heads_kept: float = 0.5
) -> Classifier:
    """A model pruned by importance on samples in one of three ways: ``all dimensions``, ``heads and
    neurons``, ``heads and neurons, global``.

    ``ratio`` is the share of the hidden size or of the neurons that goes, ``heads_kept`` that of
    the heads that stays, but for all dimensions.
    """
    all_dimensions = way == "all dimensions"
    model = copy.deepcopy(reference)
    backbone: Any = model.backbone  # a ViT
    F.cross_entropy(model(**samples.inputs), samples.labels).backward()
    attentions = [layer.attention for layer in backbone.layers]
    heads = dimensions(backbone.config).heads
    stream = [backbone.embeddings, *(a.o_proj for a in attentions)]
    stream += [layer.mlp.fc2 for layer in backbone.layers]
    pruner = tp.pruner.BasePruner(
        model,
        samples[:1].inputs["pixel_values"],
        importance=tp.importance.TaylorImportance(),
        pruning_ratio=ratio,
        global_pruning=way == "heads and neurons, global",
        ignored_layers=[model.head, *([] if all_dimensions else stream)],
        num_heads={linear: heads for a in attentions for linear in (a.q_proj, a.k_proj, a.v_proj)},
        prune_head_dims=all_dimensions,
        prune_num_heads=not all_dimensions,
        head_pruning_ratio=0.0 if all_dimensions else 1 - heads_kept,
        unwrapped_parameters=[
            (backbone.embeddings.cls_token, 2),
            (backbone.embeddings.position_embeddings, 2),
        ],
        in_channel_groups={},  # its defaults are shared between pruners
        out_channel_groups={},
        forward_fn=lambda module, pixels: module(pixel_values=pixels),
    )
    pruner.step()
    for attention in attentions:
        attention.head_dim = attention.q_proj.out_features // pruner.num_heads[attention.q_proj]
    model.zero_grad()
    return model.eval()
