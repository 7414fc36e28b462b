"""acme-fleet: one large Transformer in, one small model for every device of a fleet out.

``customize(fleet, out)`` runs the whole method, ``Fleet`` says for whom, ``load(folder)`` gives a
device's model as a plain PyTorch module. After ``import acme_fleet`` transformers'
``AutoModelForImageClassification``, ``AutoModelForSequenceClassification`` and ``pipeline`` take a
device's folder too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acme_fleet.models.registration import register_with_transformers

if TYPE_CHECKING:
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.models.shipped import load_device_model as load
    from acme_fleet.pipeline import customize

__all__ = ["Fleet", "customize", "load"]
__version__: str
register_with_transformers()


def __getattr__(name: str) -> Any:
    """Import on first use: ``acme --help`` must not wait for torch."""
    match name:
        case "Fleet":
            from acme_fleet.config.fleet import Fleet

            return Fleet
        case "customize":
            from acme_fleet.pipeline import customize

            return customize
        case "load":
            from acme_fleet.models.shipped import load_device_model

            return load_device_model
        case "__version__":
            from importlib.metadata import version

            return version("acme-fleet")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
