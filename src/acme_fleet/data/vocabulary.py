"""A smaller vocabulary for a text model: the tokens to keep, and the tokenizer cut to them.

Beyond the paper (METHOD 12): word embeddings are most of a small text model.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from acme_fleet.errors import FleetError

_NEVER = re.compile(r"\[unused\d+\]")  # places of BERT's vocabulary that no text gives
_PIECE = "##"  # WordPiece's mark of a token inside a word


def kept_tokens(tokenizer: Mapping[str, Any], uses: Mapping[int, int], size: int) -> list[int]:
    """Numbers of the tokens to keep, ascending.

    Special tokens and single letters stay, so that any text can still be written in tokens. Then
    come the tokens that texts use, the most frequent first, each with the tokens that it is merged
    from, then those that the tokenizer has learned first.

    Args:
        tokenizer: the content of a ``tokenizer.json``.
        uses: how often texts use a token, by its number.
        size: of the new vocabulary.

    Raises:
        FleetError: if the tokenizer is of another kind than WordPiece, BPE and Unigram, or the size
            is smaller than what must stay.
    """
    vocabulary = _vocabulary(tokenizer)
    names = {number: token for token, number in vocabulary.items()}
    parts = _parts(tokenizer)
    kept = {token["id"] for token in tokenizer.get("added_tokens", [])}
    kept |= {number for token, number in vocabulary.items() if _stays(token, vocabulary, tokenizer)}
    if tokenizer["model"].get("unk_id") is not None:
        kept.add(tokenizer["model"]["unk_id"])
    if len(kept) > size:
        raise FleetError(
            f"vocabulary: {size} is less than the {len(kept)} special tokens and single "
            f"letters of the tokenizer, which stay"
        )
    used = [number for number, _ in Counter(uses).most_common() if number in names]
    for number in (*used, *sorted(names)):
        if number in kept or _NEVER.fullmatch(names[number]):
            continue
        needed = {vocabulary[part] for part in _tree(names[number], parts)} - kept
        if len(kept) + len(needed) <= size:
            kept |= needed
    return sorted(kept)


def cut_tokenizer(tokenizer: Mapping[str, Any], kept: Sequence[int]) -> dict[str, Any]:
    """A ``tokenizer.json`` of these tokens alone, numbered anew in their order."""
    document = copy.deepcopy(dict(tokenizer))
    numbers = {old: new for new, old in enumerate(kept)}
    model = document["model"]
    if model["type"] == "Unigram":  # a list of pieces and their scores, which stay
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        model["unk_id"] = numbers.get(model.get("unk_id"))
    else:
        known = model["vocab"].items()
        model["vocab"] = {token: numbers[number] for token, number in known if number in numbers}
    if "merges" in model:
        model["merges"] = [
            merge
            for merge in model["merges"]
            for left, right in (_pair(merge),)
            if {left, right, left + right} <= model["vocab"].keys()
        ]
    for token in document.get("added_tokens", []):
        token["id"] = numbers[token["id"]]
    if document.get("padding"):
        document["padding"]["pad_id"] = numbers[document["padding"]["pad_id"]]
    _renumber(document.get("post_processor"), numbers)
    return document


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    kind = tokenizer["model"].get("type")
    if kind == "Unigram":
        return {piece: number for number, (piece, _) in enumerate(tokenizer["model"]["vocab"])}
    if kind not in ("WordPiece", "BPE"):
        raise FleetError(
            f"vocabulary: tokenizers of the kinds WordPiece, BPE and Unigram can be cut, "
            f"the checkpoint's is {kind}; leave vocabulary out"
        )
    return tokenizer["model"]["vocab"]


def _stays(token: str, vocabulary: Mapping[str, int], tokenizer: Mapping[str, Any]) -> bool:
    """True for a single letter, a byte, and a token with a letter that has no token of its own."""
    if tokenizer["model"]["type"] != "WordPiece":
        byte = re.fullmatch(r"<0x[0-9A-F]{2}>", token)
        if tokenizer["model"]["type"] == "BPE" or byte:
            return len(token) == 1 or bool(byte)
        return len(token) == 1 or any(letter not in vocabulary for letter in token)
    inside = token.startswith(_PIECE) and len(token) > len(_PIECE)
    letters = token.removeprefix(_PIECE) if inside else token
    first = f"{_PIECE}{letters[0]}" if inside else letters[0]
    alone = [first, *(_PIECE + letter for letter in letters[1:])]
    return len(letters) == 1 or (
        not _NEVER.fullmatch(token) and any(letter not in vocabulary for letter in alone)
    )


def _parts(tokenizer: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """The rank of each merge of two tokens; none for WordPiece."""
    merges: Iterable[Any] = tokenizer["model"].get("merges", ())
    return {_pair(merge): rank for rank, merge in enumerate(merges)}


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _tree(token: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """A token, and all that it is merged from on the way from its letters."""
    if not ranks:
        return {token}
    parts, found = list(token), {token, *token}
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(range(len(pairs)), key=lambda at: ranks.get(pairs[at], len(ranks)))
        if pairs[best] not in ranks:
            return {token}  # it is no merge's result
        parts[best : best + 2] = ["".join(pairs[best])]
        found.add(parts[best])
    return found


def _renumber(rule: Any, numbers: Mapping[int, int]) -> None:
    """Change the numbers of special tokens in a post-processor, which may hold others."""
    if rule is None:
        return
    for inner in rule.get("processors", []):
        _renumber(inner, numbers)
    for token in rule.get("special_tokens", {}).values():
        token["ids"] = [numbers[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if name in rule:
            token, number = rule[name]
            rule[name] = [token, numbers[number]]
