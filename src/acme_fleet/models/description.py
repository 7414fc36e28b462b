"""A device's classifier without its weights, as ``config.json`` of its folder describes it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from acme_fleet.errors import RunError
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.outside import one_line

IMAGE_TYPE, TEXT_TYPE = "acme_image_classifier", "acme_text_classifier"
LANGUAGE_TYPE = "acme_language_model"
_CLASSES = {
    IMAGE_TYPE: "AcmeForImageClassification",
    TEXT_TYPE: "AcmeForSequenceClassification",
    LANGUAGE_TYPE: "AcmeForCausalLM",
}

ClassName = Annotated[str, Field(max_length=1000)]


class Description(BaseModel):
    """A device's model without its weights, as it stands in ``config.json``.

    Attributes:
        backbone: the elastic backbone's configuration.
        header: the plan of the header on it.
        id2label: class names by the number of their logit; a language model has none.
        trained_classes: names of the classes in the device's train set.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: Literal["acme_image_classifier", "acme_text_classifier", "acme_language_model"]
    backbone: dict[str, Any]
    header: HeaderPlan
    id2label: Annotated[dict[int, ClassName], Field(max_length=2**20)] = {}
    trained_classes: list[ClassName] = []

    @model_validator(mode="after")
    def _consistent(self) -> Description:
        if self.writes != self.header.causal:
            raise ValueError("a header is causal in a language model, and in no other")
        if self.writes:
            if self.id2label or self.trained_classes:
                raise ValueError("a language model has no classes")
            return self
        if sorted(self.id2label) != list(range(self.header.classes)):
            raise ValueError(
                f"id2label should name the classes 0 to {self.header.classes - 1}, which the "
                f"header tells apart"
            )
        if unknown := set(self.trained_classes) - set(self.class_names):
            raise ValueError(f"trained_classes: {one_line(min(unknown), 60)!r} is no class")
        return self

    @property
    def writes(self) -> bool:
        """True of a language model, false of a classifier."""
        return self.model_type == LANGUAGE_TYPE

    @property
    def class_names(self) -> list[str]:
        """In the order of the logits."""
        return [self.id2label[number] for number in range(len(self.id2label))]

    def document(self) -> dict[str, Any]:
        """As ``config.json`` holds it, with what transformers wants to know besides."""
        own = self.model_dump(mode="json")
        classes = {
            "label2id": {name: number for number, name in self.id2label.items()},
            "problem_type": "single_label_classification",
        }
        if self.writes:
            own, classes = {key: own[key] for key in ("model_type", "backbone", "header")}, {}
        return {
            "architectures": [_CLASSES[self.model_type]],
            **own,
            **classes,
            "dtype": "float32",
            "acme_fleet_version": version("acme-fleet"),
            "transformers_version": version("transformers"),
        }


def parse_description(document: Any, what: str) -> Description:
    """The description that a ``config.json`` holds.

    Raises:
        RunError: if it holds none.
    """
    if not isinstance(document, Mapping):
        raise RunError(f"{what} holds a {type(document).__name__}, no JSON object")
    kind = document.get("model_type")
    if kind not in _CLASSES:
        older = ", or of an older acme-fleet" if str(kind).startswith("acme_") else ""
        raise RunError(
            f"{what}: model type {one_line(str(kind), 60)!r} is not that of a device's model{older}"
        )
    try:
        return Description.model_validate(document)
    except ValidationError as error:
        raise RunError(f"{what}: {first_mistake(error)}") from None
    except RecursionError:
        raise RunError(f"{what}: it is nested too deeply") from None


def first_mistake(error: ValidationError) -> str:
    """The place and nature of the first mistake that pydantic found, in one line."""
    told = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in told["loc"])
    return one_line(f"{place}: {told['msg']}".removeprefix(": "), 300)
