"""Students as they begin: cut from a teacher or loaded, and written as Hugging Face folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from acme_fleet.config.devices import Precision
from acme_fleet.cost.variant import Variant
from acme_fleet.data.checkpoint_files import config_content, located, tokenizer_content
from acme_fleet.data.language import LanguagePreprocessing
from acme_fleet.data.samples import Samples
from acme_fleet.distillation.importance import labels_objective, taylor_importance
from acme_fleet.errors import FleetError
from acme_fleet.models.backbone.checkpoints import (
    load_language_model,
    quiet,
    read_checkpoint,
    save_plain,
)
from acme_fleet.models.backbone.elastic import BY_LAYER
from acme_fleet.models.backbone.precision import rounded
from acme_fleet.models.backbone.supernet import ElasticClassifier, reorder_classifier
from acme_fleet.models.families import dimensions
from acme_fleet.models.family import LM_HEAD
from acme_fleet.models.features import LanguageModel
from acme_fleet.models.shipped import GENERATION as GENERATION_CONFIG
from acme_fleet.models.shipped import TOKENIZER_CONFIG, preprocessing_documents
from acme_fleet.models.storage import TOKENIZER, with_prefix, write_json
from acme_fleet.outside import reading
from acme_fleet.runs.atomic import make_folder, writing
from acme_fleet.stratos.lessons import LEARNED
from acme_fleet.stratos.pairs import Pair
from acme_fleet.tasks.generation import GENERATION

_MEASURED = 256  # texts that the importance of heads, neurons and channels is measured on
_TOGETHER = 8
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def load_model(weights: str | Path) -> LanguageModel:
    """A decoder of a folder, or of a name on the hub, in float32.

    Raises:
        FleetError: if it cannot be used.
    """
    return LanguageModel(load_language_model(located(weights)))


def preprocessing_of(pair: Pair, *, logits: bool) -> LanguagePreprocessing:
    """The student's tokenizer; with ``logits`` the teacher's must be the same.

    Raises:
        FleetError: if one is missing, or they differ and logits are to be learned.
    """
    student, teacher = pair.student, pair.teacher
    own = _tokenizer(student.weights, pair.student.size.context)
    if not logits or student.cut is not None:
        return own
    other = _tokenizer(teacher.weights, pair.student.size.context)
    words = "model", "added_tokens"
    same = all(own.tokenizer.get(key) == other.tokenizer.get(key) for key in words)
    if not same or own.vocabulary != other.vocabulary:
        raise FleetError(
            f"distillation: logits need one vocabulary, and the checkpoints of {teacher.name} and "
            f"{student.name} have other tokenizers, though the table of pairs calls both "
            f"{teacher.tokenizer}; correct the table, or set distillation to answers"
        )
    return own


def _tokenizer(weights: str, tokens: int) -> LanguagePreprocessing:
    found = LanguagePreprocessing.of_checkpoint(weights, tokens)
    assert isinstance(found, LanguagePreprocessing)
    return found


def cut_model(
    teacher: LanguageModel, variant: Variant, samples: Samples, draw: torch.Generator
) -> LanguageModel:
    """δ(θ0, w, d) of a teacher: its most important heads, neurons and channels, its layers spread.

    Args:
        teacher: of full width; it is not changed. variant: shares and depth.
        samples: some of them, drawn, tell the importance by the loss of the next token (Eq. 8).
        draw: decides which.

    Raises:
        FleetError: if the importance is no finite number.
    """
    measured = samples[torch.randperm(len(samples), generator=draw)[:_MEASURED]]
    measured = measured.with_inputs({k: v for k, v in measured.inputs.items() if k != LEARNED})
    objective = labels_objective(GENERATION)
    found = taylor_importance(teacher, measured, objective, _TOGETHER)
    if not all(bool(values.isfinite().all()) for values in found):
        raise FleetError("the teacher's loss on the data is no finite number: it cannot be cut")
    channels = found.channels if variant.hidden < 1 else None
    ordered = ElasticClassifier(reorder_classifier(teacher, found.heads, found.neurons, channels))
    return LanguageModel(ordered.extract(ordered.shape(variant)))


def save_student(
    backbone: PreTrainedModel,
    source: str,
    folder: Path,
    precision: Precision = "float32",
    tokenizer: LanguagePreprocessing | None = None,
) -> None:
    """Write a decoder as an ordinary Hugging Face folder, which needs nothing of this package.

    Weights have the values that they have at the precision. The file is of float16 there, and of
    float32 at all others: the folder's form knows no whole numbers with scales.

    Args:
        backbone: elastic, of one width in all layers. source: the checkpoint that it is from, whose
            tokenizer and kind it has. folder: the place. precision: of the weights.
        tokenizer: its own, where its vocabulary was cut.

    Raises:
        WriteError: if it cannot be written.
    """
    origin = located(source)
    own = None if tokenizer is None else preprocessing_documents(tokenizer)
    ends = config_content(source, origin) if own is None else own[GENERATION_CONFIG]
    with torch.device("meta"):
        loader: Any = AutoModelForCausalLM
        plain = loader.from_config(_plain_config(backbone.config, origin, ends))
    state = rounded(backbone.state_dict(), precision)
    if precision == "float16":
        state = {name: weight.half() for name, weight in state.items()}
        plain.config.dtype = torch.float16
    head = state.pop(f"{LM_HEAD}.weight", state["embed_tokens.weight"])
    plain.load_state_dict({**with_prefix("model", state), f"{LM_HEAD}.weight": head}, assign=True)
    plain.tie_weights()
    tokenizer_content(source, origin)
    with writing(folder):
        make_folder(folder)
    save_plain(plain.requires_grad_(False), folder)
    if own is not None:
        for name in (TOKENIZER, TOKENIZER_CONFIG):
            write_json(folder / name, own[name])
        return
    with reading(f"cannot use the tokenizer of {origin}"), quiet():
        config = CONFIG_MAPPING[plain.config.model_type]()
        found = AutoTokenizer.from_pretrained(
            origin, config=config, trust_remote_code=False, local_files_only=True
        )
    with writing(folder / TOKENIZER):
        found.save_pretrained(folder)


def _plain_config(
    config: PreTrainedConfig, origin: Path, ends: Mapping[str, Any]
) -> PreTrainedConfig:
    """The family's own configuration of an elastic model that has one width in all layers.

    ``ends`` has the numbers of the tokens that begin, end and fill a text.
    """
    had = read_checkpoint(origin).config
    sizes = dimensions(config)
    heads, neurons = {*config.heads_per_layer}, {*config.neurons_per_layer}
    if len(heads) != 1 or len(neurons) != 1:
        raise ValueError("layers of several widths have no plain configuration")
    kept = heads.pop()
    own = {
        "num_hidden_layers": sizes.layers,
        "hidden_size": sizes.hidden,
        "num_attention_heads": kept * sizes.queries_per_head,
        "num_key_value_heads": kept,
        "head_dim": sizes.head_dim,
        "intermediate_size": neurons.pop(),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.language_head == "tied",
    }
    own |= {key: value for key in BY_LAYER if (value := getattr(config, key, None))}
    own |= {key: ends[key] for key in _ENDS if isinstance(ends.get(key), int)}
    return CONFIG_MAPPING[had.model_type].from_dict({**had.to_dict(), **own})
