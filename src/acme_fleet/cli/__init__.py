"""The command line. Heavy libraries are imported by the command that needs them."""

from acme_fleet.cli import (
    customise,
    delivery,
    deploy,
    distill,
    fleet,
    hosts,
    pretrain,
    reference,
    ui,
    update,
)
from acme_fleet.cli.app import app
from acme_fleet.cli.customise import EXAMPLE

__all__ = [
    "EXAMPLE",
    "app",
    "customise",
    "delivery",
    "deploy",
    "distill",
    "fleet",
    "hosts",
    "pretrain",
    "reference",
    "ui",
    "update",
]
