"""A cut vocabulary: public texts are tokenized as before, and any text can still be."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import Trainer

from acme_fleet.config.fleet import Fleet
from acme_fleet.data.partition import load_world
from acme_fleet.data.text import TextPreprocessing
from acme_fleet.data.vocabulary import cut_tokenizer, kept_tokens
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import load_backbone
from acme_fleet.models.backbone.elastic import with_vocabulary
from acme_fleet.models.features import activations
from acme_research.frame.generated import tiny_bert
from tiny_texts import SAID, said

LETTERS = "abcdefgh "
PUBLIC = ["bad cabbage", "a bad face", "bad cafe"]
MORE = ["faced bead", "abba gaga", "hedge", "badge", "decade", "facade", "beheaded"] * 3


def _trained(kind: str) -> dict[str, Any]:
    """A tokenizer of many tokens: WordPiece, or BPE on bytes; with [CLS] before and [SEP] after."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer: Trainer
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special)
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=special, unk_token="[UNK]", initial_alphabet=[*LETTERS]
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet
        )
    tokenizer.train_from_iterator([*PUBLIC, *MORE, *LETTERS], trainer)
    pairs = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, number) for token, number in pairs]
    )
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return json.loads(tokenizer.to_str())


KINDS = ("WordPiece", "BPE", "Unigram")
WHOLE = {kind: _trained(kind) for kind in KINDS}


def _cut(kind: str, spare: int) -> tuple[Tokenizer, Tokenizer, list[int]]:
    """The whole tokenizer, and one with so many tokens beyond those that stay."""
    whole = Tokenizer.from_str(json.dumps(WHOLE[kind]))
    uses = Counter(number for text in whole.encode_batch(PUBLIC) for number in text.ids)
    size = whole.get_vocab_size()
    least = next(n for n in range(size) if _possible(kind, uses, n))
    kept = kept_tokens(WHOLE[kind], uses, least + spare)
    assert len(kept) <= least + spare
    return whole, Tokenizer.from_str(json.dumps(cut_tokenizer(WHOLE[kind], kept))), kept


def _possible(kind: str, uses: Counter[int], size: int) -> bool:
    try:
        kept_tokens(WHOLE[kind], uses, size)
    except FleetError:
        return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_public_texts_have_the_tokens_that_they_had(kind: str) -> None:
    whole, small, kept = _cut(kind, 20)
    assert small.get_vocab_size() == len(kept) < whole.get_vocab_size()
    for text in PUBLIC:
        assert [kept[number] for number in small.encode(text).ids] == whole.encode(text).ids
        assert small.encode(text).tokens == whole.encode(text).tokens


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 40), st.text(LETTERS, min_size=1))
def test_any_text_can_be_tokenized(kind: str, spare: int, text: str) -> None:
    """Nothing is unknown that was known, and the text comes back."""
    whole, small, kept = _cut(kind, spare)
    before, after = whole.encode(text), small.encode(text)
    assert after.tokens.count("[UNK]") == before.tokens.count("[UNK]")
    assert max(after.ids) < len(kept)
    assert small.decode(after.ids) == whole.decode(before.ids)
    assert (after.tokens[0], after.tokens[-1]) == ("[CLS]", "[SEP]")


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_used_tokens_come_first(kind: str) -> None:
    whole, small, _ = _cut(kind, 6)
    used = Counter(token for text in whole.encode_batch(PUBLIC) for token in text.tokens)
    often = max((t for t in used if len(t) > 2 and t[0] != "["), key=lambda t: used[t])
    assert used[often] > 1
    assert small.token_to_id(often) is not None


def test_other_tokenizers_are_refused() -> None:
    words = json.loads(Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str())
    with pytest.raises(
        FleetError, match=r"vocabulary: .* BPE and Unigram can be cut, .* WordLevel"
    ):
        kept_tokens(words, {}, 10)


def test_scores_of_unigram_pieces_stay_and_the_unknown_one_is_found() -> None:
    whole, small, kept = _cut("Unigram", 3)
    before, after = (json.loads(of.to_str())["model"] for of in (whole, small))
    assert after["vocab"] == [before["vocab"][number] for number in kept]
    assert after["vocab"][after["unk_id"]] == before["vocab"][before["unk_id"]]
    assert after["unk_id"] in small.encode("a ü b").ids


def test_model_answers_as_before_on_the_tokens_that_stay(text_checkpoint: Path) -> None:
    rule = TextPreprocessing.of_checkpoint(text_checkpoint, 8)
    texts = ["play song", "rain wind weather", "lamp"]
    kept = sorted({*range(5), *rule.inputs(texts)["input_ids"].flatten().tolist()})
    whole = load_backbone(text_checkpoint, None, None)
    small = with_vocabulary(whole, kept)
    assert small.config.vocab_size == len(kept) < whole.config.vocab_size
    with torch.no_grad():
        before = activations(whole, rule.inputs(texts))
        after = activations(small, rule.cut(kept).inputs(texts))
    assert torch.equal(before.final, after.final)
    assert torch.equal(before.pooled, after.pooled)


def test_model_that_lacks_a_token_is_refused(text_checkpoint: Path) -> None:
    whole = load_backbone(text_checkpoint, None, None)
    with pytest.raises(FleetError, match="has the token 9999, the checkpoint's model knows"):
        with_vocabulary(whole, [0, 9999])


def test_everybody_reads_texts_in_the_tokens_of_the_public_ones(
    tmp_path: Path,
) -> None:
    letters = [chr(ord("a") + i) for i in range(26)]
    words = sorted({word for own in SAID.values() for word in own})
    checkpoint = tiny_bert(
        tmp_path / "bert", [*words, "unsaid", *letters, *(f"##{letter}" for letter in letters)]
    )
    (tmp_path / "said.jsonl").write_text("\n".join(map(json.dumps, said(200))))
    data = {"source": "text", "train": str(tmp_path / "said.jsonl"), "label_column": "intent"}
    content = {
        "data": {**data, "max_tokens": 8},
        "reference": {"checkpoint": str(checkpoint)},
        "clusters": [{"name": "home", "devices": [{"name": "a", "storage": "1 MB"}]}],
    }
    whole = load_world(Fleet.parse(content))
    known = whole.preprocessing
    assert isinstance(known, TextPreprocessing)
    size = known.ready().get_vocab_size() - 1
    world = load_world(Fleet.parse(content | {"backbone": {"vocabulary": size}}))
    assert world.vocabulary is not None
    assert len(world.vocabulary) == size
    assert known.ready().token_to_id("unsaid") not in world.vocabulary
    with pytest.raises(FleetError, match=r"vocabulary: 9 is less than the \d+ special"):
        load_world(Fleet.parse(content | {"backbone": {"vocabulary": 9}}))
    own = world.private["a"].test.inputs
    before = whole.private["a"].test.inputs
    old = torch.tensor(world.vocabulary)[own["input_ids"]]
    assert torch.equal(old * own["attention_mask"], before["input_ids"] * before["attention_mask"])
    assert int(own["input_ids"].max()) < size
    with pytest.raises(FleetError, match=r"backbone\.vocabulary is for texts, not images"):
        Fleet.parse({"backbone": {"vocabulary": 9}, "clusters": content["clusters"]})
