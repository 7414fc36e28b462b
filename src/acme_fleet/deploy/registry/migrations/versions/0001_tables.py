"""Fleets, runs, devices, artifacts, releases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "fleets",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleets"),
        sa.UniqueConstraint("name", name="uq_fleets_name"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("fleet_id", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("recorded", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleets.id"], name="fk_runs_fleet_id"),
        sa.UniqueConstraint("fleet_id", "digest", name="uq_runs_fleet_id_digest"),
    )
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("fleet_id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleets.id"], name="fk_devices_fleet_id"),
        sa.UniqueConstraint("fleet_id", "name", name="uq_devices_fleet_id_name"),
    )
    op.create_table(
        "artifacts",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.Column("run_id", sa.Integer, nullable=True),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("manifest", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("recorded", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_artifacts_device_id"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_artifacts_run_id"),
        sa.UniqueConstraint("device_id", "sha256", name="uq_artifacts_device_id_sha256"),
    )
    op.create_table(
        "releases",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("device_id", sa.Integer, nullable=False),
        sa.Column("artifact_id", sa.Integer, nullable=False),
        sa.Column("site", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("recorded", sa.String(40), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_releases"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_releases_device_id"),
        sa.ForeignKeyConstraint(["artifact_id"], ["artifacts.id"], name="fk_releases_artifact_id"),
        sa.UniqueConstraint(
            "site", "device_id", "number", name="uq_releases_site_device_id_number"
        ),
    )
