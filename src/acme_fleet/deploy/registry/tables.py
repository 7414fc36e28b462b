"""The registry's tables, as the newest migration leaves them."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from acme_fleet.outside import optional


def library(module: str) -> ModuleType:
    """A module of SQLAlchemy or Alembic, which only the registry needs.

    Raises:
        FleetError: if it is not installed.
    """
    return optional(
        module, "a registry needs SQLAlchemy and Alembic: pip install 'acme-fleet[registry]'"
    )


@cache
def tables() -> Any:
    """The tables, by their names in ``tables().tables``.

    A fleet has runs and devices; a device has artifacts, told apart by the SHA-256 of their
    manifests; an artifact is released on sites. Times are UTC in ISO's form.
    """
    sa = library("sqlalchemy")
    names = {
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
    metadata = sa.MetaData(naming_convention=names)

    def table(name: str, *columns: Any) -> None:
        sa.Table(name, metadata, sa.Column("id", sa.Integer, primary_key=True), *columns)

    def text(name: str, length: int | None = None) -> Any:
        return sa.Column(name, sa.Text if length is None else sa.String(length), nullable=False)

    def of(name: str, *, nullable: bool = False) -> Any:
        return sa.Column(f"{name}_id", sa.Integer, sa.ForeignKey(f"{name}s.id"), nullable=nullable)

    table("fleets", text("name", 200), sa.UniqueConstraint("name"))
    table("runs", of("fleet"), text("digest", 64), text("path"), text("recorded", 40))
    metadata.tables["runs"].append_constraint(sa.UniqueConstraint("fleet_id", "digest"))
    table("devices", of("fleet"), text("name", 64), sa.UniqueConstraint("fleet_id", "name"))
    table(
        "artifacts",
        *(of("device"), of("run", nullable=True), text("sha256", 64), text("manifest")),
        *(text("path"), text("recorded", 40), sa.UniqueConstraint("device_id", "sha256")),
    )
    table(
        "releases",
        *(of("device"), of("artifact"), text("site"), sa.Column("number", sa.Integer)),
        *(text("recorded", 40), sa.UniqueConstraint("site", "device_id", "number")),
    )
    metadata.tables["releases"].c.number.nullable = False
    return metadata
