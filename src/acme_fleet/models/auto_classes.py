"""Shipped models for ``transformers``: importing this module registers them with its Auto classes.

``AutoModelForImageClassification`` and ``AutoModelForSequenceClassification`` load a device's
folder through the one reader that :func:`acme_fleet.load` uses, so with the same checks and to
the same bits. Every other ``AutoModelFor…`` refuses the folder: it would fill a model up with
random weights.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchFeature,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput, SequenceClassifierOutput
from transformers.models.auto import modeling_auto

from acme_fleet.data.checkpoint_files import located
from acme_fleet.data.image import ImagePreprocessing
from acme_fleet.errors import FleetError, RunError
from acme_fleet.models.backbone.elastic import build
from acme_fleet.models.description import (
    IMAGE_TYPE,
    TEXT_TYPE,
    Description,
    parse_description,
)
from acme_fleet.models.families import ELASTIC
from acme_fleet.models.features import feature_maps, moved
from acme_fleet.models.header.module import Header
from acme_fleet.models.shipped import load_described, parse_preprocessing, write_folder
from acme_fleet.tasks.classification import CLASSIFICATION

_HARMLESS = {
    *("_from_auto", "_from_pipeline", "_commit_hash", "adapter_kwargs", "trust_remote_code"),
    *("local_files_only", "force_download", "low_cpu_mem_usage", "use_safetensors", "weights_only"),
    *("attn_implementation", "code_revision", "generation_config"),
}
"""Arguments of transformers that change nothing here."""


@no_type_check  # by jaxtyping: transformers' dataclasses take more than their fields
class ShippedConfig(PreTrainedConfig):
    """A device's model without its weights; see :class:`Description`."""

    backbone: dict[str, Any] | None = None
    header: dict[str, Any] | None = None
    trained_classes: list[str] | None = None

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **others: Any) -> Any:
        """From what may be anybody's; only what describes the classifier gets through.

        Raises:
            RunError: if it describes none.
        """
        document = parse_description(config_dict, "config.json").document()
        fields = {field.name for field in dataclasses.fields(cls)}
        known = {name: document[name] for name in document if name in fields}
        return super().from_dict(known, **others)

    @property
    def description(self) -> Description:
        """Checked again: a user may have changed it."""
        return parse_description({**self.to_dict(), "model_type": self.model_type}, "the config")


class Shipped(PreTrainedModel):
    """A device's backbone and header as one transformers model."""

    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        about = config.description
        family = about.backbone["model_type"].removeprefix("acme_")
        self.backbone = build(ELASTIC[family][0].from_dict(about.backbone), self._place())
        self.header: Any = Header(about.header)

    @staticmethod
    def _place() -> torch.device:
        return torch.empty(0).device  # as a surrounding `with torch.device(…)` says

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        config: Any = None,
        dtype: Any = None,
        torch_dtype: Any = None,
        device_map: Any = None,
        revision: str | None = None,
        output_loading_info: bool = False,
        **others: Any,
    ) -> Any:
        """A device's model from its folder, in eval mode.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the hub.
            config: the folder's, with other class names perhaps.
            dtype, torch_dtype: of the weights; float32 without it.
            device_map: one device for the whole model.
            revision: a commit, branch or tag on the hub.
            output_loading_info: return also what was missing, which is nothing.

        Raises:
            RunError: if the folder is damaged, see :func:`acme_fleet.load`.
            TypeError: for an option that it does not have.
        """
        if unknown := {name for name, value in others.items() if value is not None} - _HARMLESS:
            raise TypeError(f"{cls.__name__} has no option {', '.join(sorted(unknown))}")
        folder = located(pretrained_model_name_or_path, revision)
        loaded, about = load_described(folder)
        config_class: Any = cls.config_class
        if about.model_type != config_class.model_type:
            raise RunError(f"{folder} holds a {about.model_type}, no {config_class.model_type}")
        own = config_class.from_dict(about.document())
        config = config or own
        if (config.backbone, config.header) != (own.backbone, own.header):
            raise RunError(f"{folder}: the config that was given is of another model")
        with torch.device("meta"):
            model = cls(config)
        model.backbone, model.header = loaded.backbone, loaded.header
        model.requires_grad_(True)
        kind = dtype if dtype is not None else torch_dtype
        if kind not in (None, "auto"):
            model.to(getattr(torch, kind) if isinstance(kind, str) else kind)
        if device_map not in (None, "auto"):
            model.to(device_map)
        return (model.eval(), _NOTHING_AMISS) if output_loading_info else model.eval()

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: Any,
        *,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **others: Any,
    ) -> None:
        """Write a folder that ``from_pretrained`` and :func:`acme_fleet.load` take.

        Preprocessor or tokenizer are saved by their own ``save_pretrained``. How the weights are
        split or stored is not a choice: other options are not used.

        Raises:
            TypeError: for ``push_to_hub``; upload the folder.
        """
        if push_to_hub:
            raise TypeError("save_pretrained writes a folder; upload it with `hf upload`")
        tensors = self.state_dict() if state_dict is None else state_dict
        write_folder(Path(save_directory), self.config.description, tensors, {})

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.header(**feature_maps(self.backbone, moved(inputs, self.device)))


def _loss(logits: Tensor, labels: Tensor | None) -> Tensor | None:
    """A classifier's loss, where transformers' convention asks for one."""
    return None if labels is None else CLASSIFICATION.loss(logits, labels.to(logits.device))


_NOTHING_AMISS = {
    name: set() for name in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
}


@no_type_check
class AcmeImageConfig(ShippedConfig):
    """Of a device's classifier of images."""

    model_type = IMAGE_TYPE


@no_type_check
class AcmeTextConfig(ShippedConfig):
    """Of a device's classifier of texts."""

    model_type = TEXT_TYPE


class AcmeForImageClassification(Shipped):
    """A device's classifier of images."""

    config_class = AcmeImageConfig
    main_input_name = "pixel_values"

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> Any:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        logits = self._logits({"pixel_values": pixel_values})
        loss = _loss(logits, labels)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


class AcmeForSequenceClassification(Shipped):
    """A device's classifier of texts."""

    config_class = AcmeTextConfig
    main_input_name = "input_ids"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits ``(batch, classes)`` of tokens and their mask, both ``(batch, tokens)``."""
        inputs = {"input_ids": input_ids}
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        logits = self._logits(inputs)
        loss = _loss(logits, labels)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output


class AcmeImageProcessor(BaseImageProcessor):
    """The project's own preprocessing, see :class:`ImagePreprocessing`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        own = {name: settings[name] for name in ImagePreprocessing.model_fields if name in settings}
        rule = parse_preprocessing(own, "preprocessor_config.json", FleetError)
        assert isinstance(rule, ImagePreprocessing)  # it has no tokenizer
        self._rule = rule

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, images: Any, return_tensors: str | None = None, **others: Any
    ) -> Any:
        """``pixel_values`` of one image or a list of them, as :func:`acme predict` makes them.

        Args:
            images: PIL images, or arrays ``(height, width[, channels])`` with values from 0 to 255
                (integers) or 0 to 1 (floats), or one array of four dimensions.
            return_tensors: ``pt``, ``np`` or nothing, which is a tensor too.

        Raises:
            FleetError: if an image cannot be meant.
            TypeError: for other options: the model was trained with this preprocessing alone.
        """
        if others:
            raise TypeError(f"{type(self).__name__} has no option {', '.join(sorted(others))}")
        several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        listed = images if several else [images]
        plain = [np.asarray(one) if isinstance(one, Tensor) else one for one in listed]
        pixels = self._rule.pixel_values(plain)
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """As ``preprocessor_config.json`` holds it."""
        document = self._rule.model_dump(mode="json")
        return {**document, "image_processor_type": type(self).__name__}


class AcmeTokenizer(PreTrainedTokenizerFast):
    """A tokenizer that cuts and pads as the model was trained, unless it is told otherwise."""

    def _get_padding_truncation_strategies(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        **rest: Any,
    ) -> Any:
        if padding is False and truncation is None and max_length is None:
            padding, truncation = "max_length", True
        return super()._get_padding_truncation_strategies(
            padding=padding, truncation=truncation, max_length=max_length, **rest
        )


def refusing(config_class: type[PreTrainedConfig], right: str) -> type[PreTrainedModel]:
    """A class that says which one is ``right`` in place of loading a folder."""

    class Refusing(PreTrainedModel):
        @classmethod
        def from_pretrained(cls, folder: Any, *others: Any, **options: Any) -> Any:
            raise RunError(
                f"{folder} holds a device's whole model; load it with {right} or acme_fleet.load"
            )

        @classmethod
        def _from_config(cls, *others: Any, **options: Any) -> Any:
            raise RunError(f"this is the configuration of a device's model; use {right}")

    Refusing.config_class = config_class
    return Refusing


def register(
    config_class: type[PreTrainedConfig], model_class: type[PreTrainedModel], right: str
) -> None:
    """Make a folder's kind known: to its own Auto class, and to all others to be refused."""
    AutoConfig.register(config_class.model_type, config_class)
    refused = refusing(config_class, right)
    for name, auto in vars(modeling_auto).items():
        if name.startswith("AutoModel") and isinstance(auto, type):
            auto.register(config_class, model_class if name == right else refused)


def _register() -> None:
    register(AcmeImageConfig, AcmeForImageClassification, AutoModelForImageClassification.__name__)
    register(
        AcmeTextConfig, AcmeForSequenceClassification, AutoModelForSequenceClassification.__name__
    )
    processors = {"pil": AcmeImageProcessor, "torchvision": AcmeImageProcessor}
    AutoImageProcessor.register(AcmeImageConfig, image_processor_classes=processors)
    AutoTokenizer.register(AcmeTextConfig, tokenizer_class=AcmeTokenizer)


_register()
