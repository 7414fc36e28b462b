"""A chat template: messages as the text that a model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from acme_fleet_runtime.errors import FleetError
from acme_fleet_runtime.outside import reading


class ChatTemplate:
    """A template of Jinja, with the functions that Hugging Face gives to it, in a sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Read it.

        Raises:
            FleetError: if Jinja is missing, or it is no template.
        """
        try:
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError as error:
            raise FleetError("chats need Jinja: pip install jinja2") from error
        settings: Any = {"trim_blocks": True, "lstrip_blocks": True}
        environment = ImmutableSandboxedEnvironment(
            extensions=["jinja2.ext.loopcontrols"], **settings
        )
        environment.filters["tojson"] = _as_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        with reading("the chat template"):
            self._template = environment.from_string(source)
        self._special = dict(special_tokens)

    def written(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat as a text, up to where the next answer begins.

        Raises:
            FleetError: if the template does not take the messages.
        """
        with reading("the chat template cannot write the messages"):
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._special,
            )


def _as_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise FleetError(message)
