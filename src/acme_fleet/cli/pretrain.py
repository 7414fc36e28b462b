"""References from data alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from acme_fleet.cli.app import CUSTOMISE, app, say
from acme_fleet.cli.signals import stop_explained
from acme_fleet.errors import AcmeError


@contextmanager
def _options_named(options: Mapping[str, str]) -> Iterator[None]:
    """Name the options of a command that has no fleet file, by the keys that errors name."""
    try:
        yield
    except AcmeError as error:
        told = str(error)
        for key, option in options.items():
            told = told.replace(key, option)
        raise type(error)(told) from error


@app.command(rich_help_panel=CUSTOMISE)
def pretrain(
    data: Annotated[
        Path, typer.Option(help="Images: a folder, .parquet or .npz file; or texts: JSON Lines.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the model; must be new or empty.")],
    model: Annotated[
        str,
        typer.Option(
            help="vit-micro, vit-tiny, vit-small or vit-base; of texts llama-nano, llama-micro or "
            "llama-mini."
        ),
    ] = "vit-tiny",
    patch_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels; an eighth of a small image by default.")
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=4, help="Resize images to this.")] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Only the first n classes.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=1)] = 128,
    learning_rate: Annotated[float, typer.Option(min=1e-9)] = 1e-3,
    cutmix: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of mixed batches; half from 50 epochs on."),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Key of the texts.")] = "text",
    max_tokens: Annotated[int, typer.Option(min=2, max=512, help="Of a text.")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, or cuda: bfloat16 and compiled.")] = "cpu",
) -> None:
    """Train a reference model from data alone; it goes on where it was interrupted."""
    options = {"data.train": "--data", "data.max_tokens": "--max-tokens"}
    with _options_named({**options, "`data.image_size`": "--image-size"}):
        from acme_fleet.config.training import Training
        from acme_fleet.data.datasets import load_source
        from acme_fleet.data.sources.archives import data_at
        from acme_fleet.report.terminal.progress import LiveStages
        from acme_fleet.training.language_pretraining import (
            DECODERS,
            LanguageRecipe,
            pretrain_language,
        )
        from acme_fleet.training.pretraining import pretrain, recipe_for

        again = f"what is finished is in {out}; the same command goes on"
        if model in DECODERS:
            training = Training(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
            of_texts = LanguageRecipe(model, training, max_tokens, seed)
            with stop_explained(again), LiveStages() as stages:
                told = partial(stages.stage, "cloud", "pretrain")
                found = pretrain_language(data, text_column, of_texts, out, told)
            say(
                f"test loss {found['test']['loss']:.4f} a token on {found['test']['samples']} texts"
            )
            say(f"wrote {out}; in a fleet file: reference: {{checkpoint: {out.resolve()}}}")
            return
        found_at = data_at(data, image_size, classes)
        source = load_source(found_at)
        training = Training(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate)
        recipe = recipe_for(source, model, training, patch_size, cutmix, seed)
        with stop_explained(again), LiveStages() as stages:
            found = pretrain(
                source,
                recipe,
                out,
                paths=[data, *cast("list[Path]", found_at.train)],
                torch_device=device,
                progress=lambda done, of, note: stages.stage("cloud", "pretrain", done, of, note),
            )
    say(f"test accuracy {found['test']['accuracy']:.4f} on {found['test']['samples']} images")
    say(f"wrote {out}; in a fleet file: reference: {{checkpoint: {out.resolve()}}}")
