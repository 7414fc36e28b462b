"""From the publisher's machine to devices: publish, pull, roll back, and the keys for that."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from acme_fleet.cli.app import DELIVER, app, called, say
from acme_fleet.cli.fleet import RegistryOption, open_registry
from acme_fleet.cli.hosts import keys
from acme_fleet.outside import listed

if TYPE_CHECKING:
    from acme_fleet.deploy.delivery.publish import Published
    from acme_fleet.deploy.delivery.signing import Publisher

PublisherFolder = Annotated[
    Path, typer.Option("--keys", help="The publisher's folder: keys, outside of what is served.")
]
Site = Annotated[
    Path, typer.Option("--to", help="Folder that a file server serves.", show_default=False)
]
DeviceFolder = Annotated[
    Path, typer.Option("--to", help="The device's folder of releases.", show_default=False)
]
FOLDER = Path("publisher")
_DAYS = 30  # that a site is valid without a refresh


@app.command(rich_help_panel=DELIVER)
def publish(
    to: Site,
    place: Annotated[
        Path | None,
        typer.Argument(
            help="A run directory with artifacts, or an artifact's folder.", show_default=False
        ),
    ] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="Its name; may be given again. All without it.")
    ] = None,
    keys_dir: PublisherFolder = FOLDER,
    bundles: Annotated[
        Path | None, typer.Option("--bundle", help="Folder for a zip of each device's release.")
    ] = None,
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Only say anew that the releases are the newest.")
    ] = False,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Devices refuse what was not refreshed for longer.")
    ] = _DAYS,
    registry: RegistryOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="A new release also where the artifact is the same.")
    ] = False,
    other: Annotated[
        bool, typer.Option("--other", help="Also over a release of another task or classes.")
    ] = False,
) -> None:
    """Publish exported artifacts, signed, in a folder that any static file server can serve.

    \b
    acme publish runs/mine --to site                        every device's artifact
    acme publish runs/mine --to site --device cam-1 --bundle bundles    also bundles/cam-1.zip
    acme publish --to site --refresh                        at least every 30 days
    """
    from acme_fleet.deploy.delivery.publish import artifacts_of
    from acme_fleet.deploy.delivery.publish import refresh as refresh_site
    from acme_fleet.errors import FleetError

    publisher = _publisher(keys_dir, days)
    if refresh == (place is not None):
        raise FleetError("name a run or an artifact, or ask for --refresh")
    if place is None:
        refresh_site(to, publisher)
        say(f"{to}: {_valid(publisher)}")
        say(_due(to, publisher))
        return
    record, artifacts = open_registry(registry), artifacts_of(place, device or [])
    done = _publish(artifacts, to, publisher, bundles, force=force, other=other)
    if not device:
        _tell_missing(place, {one.device for one in done})
    if record is not None:
        for folder, one in zip(artifacts, done, strict=True):
            record.record(folder, (to, one.number))
    say(
        f"on a device: acme-runtime pull --from URL --device {_whose(done)} --to FOLDER "
        f"--trust {publisher.fingerprint}"
    )
    if len(done) > 1:
        say(f"NAME is its own: {listed([one.device for one in done], 20)}")


def _tell_missing(place: Path, published: set[str]) -> None:
    """Devices of a run that have a model and no artifact."""
    from acme_fleet.models.storage import WEIGHTS

    models = {path.parent.name for path in (place / "devices").glob(f"*/{WEIGHTS}")}
    for name in sorted(models - published):
        again = f"{called()} export {shlex.quote(str(place))} --device {name}"
        say(f"not published: {name} has no artifact; {again}", error=True)


def _whose(done: list[Published]) -> str:
    """The device to name in a command: the only one, or a place for each one's name."""
    return done[0].device if len(done) == 1 else "NAME"


def _publish(
    artifacts: list[Path],
    to: Path,
    publisher: Publisher,
    bundles: Path | None,
    *,
    force: bool,
    other: bool,
) -> list[Published]:
    """Publish artifacts, write their bundles, and tell it."""
    from acme_fleet.deploy.delivery.publish import bundle, publish

    fresh = not publisher.exists
    try:
        done = publish(artifacts, to, publisher, force=force, other=other)
    finally:
        if fresh and publisher.exists:
            say(_advice(publisher))
    _tell(done)
    if bundles is not None:
        for one in done:
            path = bundles / f"{one.device}.zip"
            bundle(to, one.device, path)
            say(f"wrote {path}")
    say(f"wrote {to}: {_valid(publisher)}")
    say(_due(to, publisher))
    return done


@app.command(rich_help_panel=DELIVER)
def pull(
    source: Annotated[
        str,
        typer.Option("--from", help="URL, folder or bundle of a publisher.", show_default=False),
    ],
    device: Annotated[str, typer.Option(help="This device's name.", show_default=False)],
    to: DeviceFolder,
    trust: Annotated[
        str | None,
        typer.Option(help="The publisher's fingerprint or root.json; needed once for a folder."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also a release that was rolled back here.")
    ] = False,
) -> None:
    """Install a device's newest release: verified, tried, switched to in one step.

    \b
    acme pull --from https://example.org/site --device cam-1 --to models --trust FINGERPRINT
    acme predict models/current photo.jpg
    """
    from acme_fleet_runtime.delivery.device import pull

    say(pull(source, device, to, trust=trust, again=again).told)


@app.command(rich_help_panel=DELIVER)
def rollback(
    to: Annotated[
        Path, typer.Argument(help="The device's folder of releases.", show_default=False)
    ],
) -> None:
    """Go back to the release before; `acme pull` waits for a newer one than the one left."""
    from acme_fleet_runtime.delivery.device import rollback

    say(rollback(to).told)


@keys.command("new")
def keys_new(keys_dir: PublisherFolder = FOLDER) -> None:
    """Make a publisher's keys; `acme publish` makes them where there are none."""
    publisher = _publisher(keys_dir)
    publisher.create()
    say(_advice(publisher))


@keys.command("show")
def keys_show(keys_dir: PublisherFolder = FOLDER) -> None:
    """Show a publisher's fingerprint, which keys are here, and when signatures run out."""
    from acme_fleet.deploy.delivery.signing import KEYS, ROLES

    publisher = _publisher(keys_dir)
    ends = {role: publisher.signed(role).expires for role in ROLES}
    say(f"fingerprint {publisher.fingerprint}")
    for key in KEYS:
        here = "here" if publisher.has_key(key) else "not here"
        until = min(ends[role] for role, each in ROLES.items() if each == key)
        names = ", ".join(path.name for path in publisher.key_files(key))
        say(f"{key:10} {names} ({here}); signatures are valid until {until:%Y-%m-%d}")


@keys.command("rotate")
def keys_rotate(
    key: Annotated[
        Literal["root", "publish", "timestamp"],
        typer.Argument(help="The key to replace.", show_default=False),
    ],
    to: Site,
    keys_dir: PublisherFolder = FOLDER,
) -> None:
    """Replace a publisher's key; devices follow by themselves. The root key must be here."""
    from acme_fleet.deploy.delivery.publish import rotate

    publisher = _publisher(keys_dir)
    old = publisher.key_files(key)
    rotate(to, publisher, key)
    say(f"the {key} key is now {publisher.key_files(key)[0]}; {_valid(publisher)}")
    say(f"without a use: {', '.join(map(str, old))}; remove it, and its copies")


def _publisher(folder: Path, days: int = _DAYS) -> Publisher:
    from datetime import UTC, datetime

    from acme_fleet.deploy.delivery.signing import Publisher

    return Publisher(folder, datetime.now(UTC), days)


def _valid(publisher: Publisher) -> str:
    return f"valid until {publisher.signed('timestamp').expires:%Y-%m-%d %H:%M} UTC"


def _due(to: Path, publisher: Publisher) -> str:
    """The command that is due before devices refuse what a site offers."""
    words = [called(), "publish", "--to", str(to), "--refresh"]
    words += [] if publisher.folder == FOLDER else ["--keys", str(publisher.folder)]
    words += [] if publisher.days == _DAYS else ["--days", str(publisher.days)]
    return f"devices refuse it later; at least once before then: {shlex.join(words)}"


def _advice(publisher: Publisher) -> str:
    root, *online = (publisher.key_files(key)[0] for key in ("root", "publish", "timestamp"))
    return (
        f"made keys in {publisher.folder}\n"
        f"  {root.name}: move it to a medium apart, with a copy; only new keys need it\n"
        f"  {online[0].name}: signs releases; whoever has it can publish\n"
        f"  {online[1].name}: only says that releases are the newest; may lie on a server\n"
        f"devices know this publisher by {publisher.fingerprint}"
    )


def _tell(done: list[Published]) -> None:
    from acme_fleet.report.words import bytes_text

    for one in done:
        state = "" if one.new else ", published before"
        say(f"{one.device}: release {one.number}, {bytes_text(one.size_bytes)}{state}")
        if one.forced:
            say(f"warning: {one.device}: was exported with --force", error=True)
