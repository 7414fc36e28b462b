"""A tokenizer as GGUF holds it: byte-level BPE, by llama.cpp's name for how it splits texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.errors import FleetError

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_PATTERN = {f"{_SPLIT}{{1,3}}{_REST}": "llama-bpe", f"{_SPLIT}{_REST}": "qwen2"}
"""llama.cpp's name for a way to split texts, by its regular expression."""
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5  # kinds of tokens


def add_tokenizer(writer: Any, rule: LanguagePreprocessing, words: int) -> None:
    """Write a tokenizer, its special tokens and the chat template.

    Args:
        writer: of GGUF.
        rule: with the tokenizer.
        words: rows of the table of words; those behind the last token are unused.

    Raises:
        FleetError: if llama.cpp has no such tokenizer.
    """
    document, ready = rule.tokenizer, rule.ready()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split_name(document))
    added = {each["id"]: each["special"] for each in document.get("added_tokens", ())}
    tokens = [ready.id_to_token(number) for number in range(words)]
    kinds = [
        _UNUSED
        if token is None
        else _NORMAL
        if number not in added
        else (_CONTROL if added[number] else _USER)
        for number, token in enumerate(tokens)
    ]
    writer.add_token_list([token or f"[UNUSED{number}]" for number, token in enumerate(tokens)])
    writer.add_token_types(kinds)
    writer.add_token_merges([_merge(pair) for pair in document["model"]["merges"]])
    for part, write in (
        ("bos_token", writer.add_bos_token_id),
        ("eos_token", writer.add_eos_token_id),
        ("unk_token", writer.add_unk_token_id),
    ):
        number = ready.token_to_id(rule.special_tokens.get(part, ""))
        if number is not None:
            write(number)
    writer.add_pad_token_id(rule.pad_id)
    writer.add_add_bos_token(
        ready.encode("a").ids != ready.encode("a", add_special_tokens=False).ids
    )
    writer.add_add_space_prefix(False)
    if rule.chat_template is not None:
        writer.add_chat_template(rule.chat_template)


def _merge(pair: str | Sequence[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _split_name(document: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a byte-level tokenizer splits texts.

    Raises:
        FleetError: if it has none.
    """
    steps = document.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    name = None
    if document["model"]["type"] == "BPE" and kinds and kinds[-1] == "ByteLevel":
        bytes_of = steps[-1]
        if kinds[:-1] == ["Split"] and not bytes_of["use_regex"]:
            name = _BY_PATTERN.get(steps[0]["pattern"].get("Regex"))
        elif bytes_of["use_regex"] and not bytes_of["add_prefix_space"]:
            digits = kinds[:-1] == ["Digits"] and steps[0]["individual_digits"]
            name = "smollm" if digits else "gpt-2" if len(steps) == 1 else None
    if name is None:
        raise FleetError(
            f"the tokenizer ({document['model']['type']}, {' + '.join(map(str, kinds))}) is none "
            f"that can be written for llama.cpp, which are byte-level BPE that split texts as "
            f"GPT-2, SmolLM, Llama 3 or Qwen2 do; use --format onnx or safetensors"
        )
    return name
