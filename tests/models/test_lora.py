"""LoRA on a decoder's last layers."""

from __future__ import annotations

from pathlib import Path

import torch

from acme_fleet.models.backbone.checkpoints import load_language_model
from acme_fleet.models.features import LanguageModel
from acme_fleet.models.lora import with_lora
from tiny_language import tiny_llama


def test_it_changes_nothing_at_first_and_the_last_layers_alone(tmp_path: Path):
    backbone = load_language_model(tiny_llama(tmp_path))
    model = with_lora(backbone, 3, 1, torch.Generator().manual_seed(0))
    ids = torch.arange(1, 8)[None]
    assert torch.equal(model(input_ids=ids), LanguageModel(backbone)(input_ids=ids))
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    # Queries of 24 outputs and values of 12, both of 24 inputs.
    assert sum(p.numel() for p in learned.values()) == 3 * (24 + 24) + 3 * (24 + 12)
    assert all("layers.1.self_attn" in name for name in learned)
    model(input_ids=ids).square().sum().backward()
    changed = {name for name, p in learned.items() if p.grad is not None and bool(p.grad.any())}
    assert changed == {name for name in learned if name.endswith("up")}  # until B is not zero
