"""A pre-trained reference, fine-tuned once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from acme_fleet.cli.app import CUSTOMISE, app, say
from acme_fleet.cli.customise import FleetFile, Seed
from acme_fleet.cli.signals import stop_explained


@app.command(rich_help_panel=CUSTOMISE)
def reference(
    path: FleetFile,
    out: Annotated[Path, typer.Option(help="Folder of the reference; must be new or empty.")],
    seed: Seed = None,
) -> None:
    """Fine-tune a fleet's checkpoint on its public data, once, for many runs."""
    from acme_fleet.cloud.fine_tuned import WORK, make_reference
    from acme_fleet.config.fleet import Fleet
    from acme_fleet.report.terminal.progress import LiveStages
    from acme_fleet.runs.journal import Journal

    fleet = Fleet.from_yaml(path)
    if seed is not None:
        fleet = fleet.model_copy(update={"seed": seed})
    again = f"what is finished is in {out}; the same command goes on"
    with stop_explained(again), LiveStages() as stages:
        journal = Journal(out / WORK / "events.jsonl", stages)
        found = make_reference(fleet, out, partial(journal.stage, "cloud", tier="cloud"))
    say(
        f"test accuracy {found.accuracy:.4f} on {found.test_samples} public samples; a regression "
        f"on the untouched checkpoint has {found.accuracy_untouched:.4f}"
    )
    if found.origin == "untouched":
        say("fine-tuning was not better on validation data: the checkpoint stays as it is")
    say(f"wrote {out}; in a fleet file: reference: {{checkpoint: {out.resolve()}}}")
