"""acme-fleet: one large Transformer in, one small model for every device of a fleet out.

``customize("fleet.yaml")`` runs the whole method and returns a :class:`Run`; ``open_run(folder)``
returns one that is finished; ``Fleet`` says for whom; ``load(folder)`` gives a device's model as a
plain PyTorch module; ``Callback`` watches a run. After ``import acme_fleet`` transformers'
``AutoModelForImageClassification``, ``AutoModelForSequenceClassification`` and ``pipeline`` take a
device's folder too.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from acme_fleet.models.registration import register_with_transformers

if TYPE_CHECKING:
    from acme_fleet.api import Run, customize, open_run
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.models.shipped import load_device_model as load
    from acme_fleet.runs.callbacks import Callback

__all__ = ["Callback", "Fleet", "Run", "customize", "load", "open_run"]
__version__: str
register_with_transformers()

_PLACES = {
    "Callback": ("acme_fleet.runs.callbacks", "Callback"),
    "Fleet": ("acme_fleet.config.fleet", "Fleet"),
    "Run": ("acme_fleet.api", "Run"),
    "customize": ("acme_fleet.api", "customize"),
    "load": ("acme_fleet.models.shipped", "load_device_model"),
    "open_run": ("acme_fleet.api", "open_run"),
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``acme --help`` must not wait for torch."""
    if name == "__version__":
        from importlib.metadata import version

        return version("acme-fleet")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "__doc__"])
