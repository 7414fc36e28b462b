"""The command line. Heavy libraries are imported by the command that needs them."""

from acme_fleet.cli import (
    customise,
    delivery,
    deploy,
    distill,
    doctor,
    fleet,
    hosts,
    init,
    predict,
    pretrain,
    reference,
    ui,
    update,
)
from acme_fleet.cli.app import app
from acme_fleet.cli.init import EXAMPLE

__all__ = [
    "EXAMPLE",
    "app",
    "customise",
    "delivery",
    "deploy",
    "distill",
    "doctor",
    "fleet",
    "hosts",
    "init",
    "predict",
    "pretrain",
    "reference",
    "ui",
    "update",
]
