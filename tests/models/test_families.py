"""Things that one family does and others do not: they outlive a cut, or are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor
from transformers import AutoModel, ElectraConfig, ElectraModel, PreTrainedModel

from acme_fleet.errors import FleetError, ProtocolError
from acme_fleet.models.backbone.checkpoints import load_backbone
from acme_fleet.models.backbone.elastic import (
    Architecture,
    architecture,
    as_elastic,
    extract,
    reorder,
    with_vocabulary,
)
from acme_fleet.models.families import ELASTIC, FAMILIES, add_family, dimensions, most_tokens
from acme_fleet.models.features import activations
from acme_fleet.models.pooling import pool_by, poolings_of
from acme_fleet.models.storage import backbone_from, clone_state, config_document

MakeBackbone = Callable[..., PreTrainedModel]
MakeInputs = Callable[..., dict[str, Tensor]]
LAST = Architecture(layers=(2,), heads=(2,), neurons=(5,))
COUNTED = ("roberta", "xlm-roberta", "mpnet")


@torch.no_grad()
def final(model: PreTrainedModel, **inputs: Tensor) -> Tensor:
    return activations(model, dict(inputs)).final


# --- positions that are counted from the padding token ----------------------------------------


@pytest.mark.parametrize("family", COUNTED)
def test_positions_follow_the_padding_token_into_a_cut_vocabulary(
    family: str, plain_backbone: MakeBackbone
) -> None:
    """Token 0 goes, so that token 1, the padding, becomes 0."""
    model = as_elastic(plain_backbone(family))
    kept = [1, 3, 4, 8, 9, 20]
    small = with_vocabulary(model, kept)
    assert (small.config.pad_token_id, small.config.vocab_size) == (0, 6)
    assert most_tokens(small.config) == most_tokens(model.config) == 16
    ids, mask = torch.tensor([[2, 5, 1, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    found = final(small, input_ids=ids, attention_mask=mask)[:, :3]
    expected = final(model, input_ids=torch.tensor(kept)[ids], attention_mask=mask)[:, :3]
    torch.testing.assert_close(found, expected)
    again = extract(small, LAST)
    assert final(again, input_ids=ids.repeat(1, 3)).isfinite().all()


@pytest.mark.parametrize("family", COUNTED)
def test_without_the_padding_token_positions_cannot_be_counted(
    family: str, plain_backbone: MakeBackbone
) -> None:
    plain = plain_backbone(family)
    with pytest.raises(FleetError, match=r"vocabulary: the padding token 1 is not kept"):
        with_vocabulary(as_elastic(plain), [0, 3, 4])
    small = extract(as_elastic(plain), LAST)
    for pad, told in ((None, "null"), (-2, "-2"), (17, "17")):
        wrong = f"pad_token_id is {told}: a {family} counts its 18 positions"
        with pytest.raises(ProtocolError, match=wrong):
            backbone_from(config_document(small) | {"pad_token_id": pad}, clone_state(small))
        plain.config.pad_token_id = pad
        with pytest.raises(FleetError, match=wrong):
            as_elastic(plain)


# --- lists by layer, and layers that differ ---------------------------------------------------


def test_a_later_layer_of_a_modernbert_keeps_its_first_norm(
    plain_backbone: MakeBackbone, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    """The reference's first layer has none: the embeddings are normalised."""
    model = as_elastic(plain_backbone("modernbert"))
    assert "layers.0.attn_norm.weight" not in model.state_dict()
    small = extract(model, LAST)
    assert small.config.first_layer_norm
    norm = model.get_parameter("layers.2.attn_norm.weight")
    assert torch.equal(small.get_parameter("layers.0.attn_norm.weight"), norm)
    first = extract(model, Architecture((0, 2), (4, 4), (12, 12)))
    assert not first.config.first_layer_norm
    again = extract(small, Architecture((0,), (1,), (3,)))  # a cut of what is cut
    again.save_pretrained(tmp_path)
    inputs = make_inputs("modernbert")
    assert torch.equal(final(load_backbone(tmp_path), **inputs), final(again, **inputs))


def test_layers_without_positions_stay_so(plain_backbone: MakeBackbone) -> None:
    model = as_elastic(plain_backbone("smollm3"))
    small = extract(model, Architecture((1, 2), (1, 1), (1, 1)))
    assert model.config.no_rope_layers == [1, 0, 1]
    assert small.config.no_rope_layers == [0, 1]
    layers: Any = small.get_submodule("layers")
    assert [bool(layer.self_attn.use_rope) for layer in layers] == [False, True]
    assert [layer.self_attn.sliding_window for layer in layers] == [None, 3]


def test_a_cut_gemma_scales_its_words_as_before(plain_backbone: MakeBackbone) -> None:
    model = as_elastic(plain_backbone("gemma3_text"))
    small = extract(model, Architecture((0, 2), (1, 1), (1, 1), hidden=8))
    ids = torch.tensor([[3, 4]])
    words, cut = (of.get_input_embeddings()(ids) for of in (model, small))
    assert torch.equal(cut, words[..., :8])
    assert small.config.embed_scale == 24**0.5


def test_a_gemma_that_looks_both_ways_sees_no_padding(
    plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    """As an encoder of sentences; its windows are narrower than the padding here."""
    config = plain_backbone("gemma3_text").config
    document = config.to_dict() | {"use_bidirectional_attention": True, "sliding_window": 4}
    plain = hf.AutoModel.from_config(hf.Gemma3TextConfig.from_dict(document)).eval()
    model = as_elastic(plain)
    text = make_inputs("gemma3_text")["input_ids"][:1]
    padded = torch.cat([text, torch.full((1, 9), 7)], dim=1)
    mask = (torch.arange(16) < 7).long()[None]
    alone = final(model, input_ids=text)
    torch.testing.assert_close(alone, plain(input_ids=text).last_hidden_state)
    torch.testing.assert_close(final(model, input_ids=padded, attention_mask=mask)[:, :7], alone)
    causal = final(as_elastic(plain_backbone("gemma3_text")), input_ids=text[:, :3])
    assert causal.isfinite().all()
    assert not torch.allclose(final(model, input_ids=text[:, :3]), alone[:, :3], atol=1e-4)


def test_heads_of_an_mpnet_take_their_biases_along(plain_backbone: MakeBackbone) -> None:
    """Its layers share one table; here each has its own, in the order of its own heads."""
    plain = plain_backbone("mpnet")
    model = as_elastic(plain)
    heads = torch.tensor([[0.0, 1, 2, 3], [3, 2, 1, 0], [0, 3, 1, 2]])
    ordered = reorder(model, heads, torch.zeros(3, 12))
    shared = plain.get_parameter("encoder.relative_attention_bias.weight")
    for layer, order in enumerate(([3, 2, 1, 0], [0, 1, 2, 3], [1, 3, 2, 0])):
        name = f"encoder.layer.{layer}.attention.attn.relative_attention_bias.weight"
        assert torch.equal(ordered.get_parameter(name), shared[:, order])


# --- pooling ----------------------------------------------------------------------------------


def test_clip_and_siglip_pool_as_they_were_trained(
    plain_backbone: MakeBackbone, make_inputs: MakeInputs
) -> None:
    for family in ("clip_vision_model", "siglip_vision_model"):
        plain, inputs = plain_backbone(family), make_inputs(family)
        model = as_elastic(plain)
        with torch.no_grad():
            found = activations(model, inputs)
            torch.testing.assert_close(found.pooled, plain(**inputs).pooler_output)
        own = "first" if family.startswith("clip") else "attention"
        assert poolings_of(model.config, None) == [own, "mean"]


def test_what_pools_by_attention_goes_where_it_is_not_used(
    plain_backbone: MakeBackbone, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    model, inputs = as_elastic(plain_backbone("siglip_vision_model")), make_inputs("vit")
    before = final(model, pixel_values=inputs["pixel_values"])
    small = extract(model, Architecture((0, 2), (1, 2), (3, 4), hidden=6))
    assert small.get_parameter("head.self_attn.q_proj.weight").shape == (16, 6)
    pool_by(model, "mean")
    assert not any(name.startswith("head.") for name in model.state_dict())
    assert torch.equal(final(model, pixel_values=inputs["pixel_values"]), before)
    lean = extract(model, Architecture((0, 2), (1, 2), (3, 4)))
    lean.save_pretrained(tmp_path)
    loaded = load_backbone(tmp_path)
    assert loaded.config.pooling == "mean"
    assert activations(loaded, inputs).pooled.shape == (4, 16)
    with pytest.raises(FleetError, match=r"pooling: this siglip_vision_model has no attention"):
        pool_by(model, "attention")
    with pytest.raises(FleetError, match=r"reference.pooling: this vit has no attention"):
        pool_by(as_elastic(plain_backbone("vit")), "attention")


# --- configurations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "older"),
    [
        (
            "modernbert",
            {
                "global_rope_theta": 500.0,
                "local_rope_theta": 50.0,
                "global_attn_every_n_layers": 2,
            },
        ),
        (
            "gemma3_text",
            {"rope_theta": 500.0, "rope_local_base_freq": 50.0, "sliding_window_pattern": 2},
        ),
    ],
)
def test_configurations_of_older_transformers_are_understood(
    family: str,
    older: dict[str, Any],
    plain_backbone: MakeBackbone,
    make_inputs: MakeInputs,
    tmp_path: Path,
) -> None:
    model, inputs = plain_backbone(family), make_inputs(family)
    model.save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    for key in ("layer_types", "rope_parameters"):
        del document[key]
    (tmp_path / "config.json").write_text(json.dumps(document | older))
    theirs = hf.AutoModel.from_pretrained(tmp_path).eval()
    assert len(set(theirs.config.layer_types)) == 2
    text = {"input_ids": inputs["input_ids"]}
    torch.testing.assert_close(
        final(load_backbone(tmp_path), **text), theirs(**text).last_hidden_state
    )
    assert not torch.allclose(theirs(**text).last_hidden_state, model(**text).last_hidden_state)


@pytest.mark.parametrize("family", ["clip_vision_model", "roberta", "modernbert", "gemma3_text"])
def test_a_hidden_size_that_does_not_divide_is_named(
    family: str, plain_backbone: MakeBackbone, tmp_path: Path
) -> None:
    plain_backbone(family).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(document | {"hidden_size": 13}))
    with pytest.raises(FleetError, match=r"hidden size \(13.*not a multiple of the number of att"):
        load_backbone(tmp_path)


# --- a new one ---------------------------------------------------------------------------------


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
