"""A family is one entry: a model type of transformers, added here, is elastic and loads again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, ElectraConfig, ElectraModel

from acme_fleet.models.backbone.elastic import architecture, as_elastic, extract
from acme_fleet.models.families import ELASTIC, FAMILIES, add_family, dimensions


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own loading
def test_a_new_family_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (FAMILIES, ELASTIC):
        monkeypatch.setitem(table, "electra", None)  # is put back after the test
    add_family("electra", replace(FAMILIES["bert"], options={}))
    config = ElectraConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )
    model = ElectraModel(config).eval()
    tokens = {"input_ids": torch.randint(1, 50, (2, 7))}
    with torch.no_grad():
        elastic = as_elastic(model)
        assert torch.equal(elastic(**tokens)[0], model(**tokens)[0])
        small = extract(elastic, architecture(dimensions(elastic.config), 0.5, 2))
        small.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path).eval()
        assert torch.equal(loaded(**tokens)[0], small(**tokens)[0])
    assert loaded.config.heads_per_layer == [2, 2]
