"""Files that serve a student with vLLM on the server that was chosen; the user starts them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from acme_fleet.config.base import Settings
from acme_fleet.errors import FleetError
from acme_fleet.runs.atomic import make_folder, replacing, writing
from acme_fleet.stratos.run_directory import Chosen, DistillSummary

SCRIPT, TASK, SERVICE = "vllm.sh", "task.sky.yaml", "service.sky.yaml"
_PORT, _MOUNT, _KEY = 8000, "/student", "VLLM_API_KEY"
_READY_S = 1200  # in which a server must have started: vLLM is installed first


class Resources(Settings):
    """SkyPilot's ``resources``: one instance type in one place."""

    infra: Annotated[str, Field(pattern=r"^[a-z][\w-]*/[\w*-]+(/[\w-]+)?$")]
    instance_type: str
    accelerators: Annotated[str, Field(pattern=r"^[\w.-]+:\d+$")] | None = None
    use_spot: bool
    ports: Annotated[int, Field(ge=1, le=65_535)]


class Probe(Settings):
    """SkyPilot's ``readiness_probe``."""

    path: str
    initial_delay_seconds: Annotated[int, Field(ge=1)]


class Service(Settings):
    """SkyPilot's ``service``."""

    readiness_probe: Probe
    replicas: Annotated[int, Field(ge=1)]


class SkyTask(Settings):
    """The part of a SkyPilot task that is written here; another key is an error."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9]([\w.-]*[a-zA-Z0-9])?$")]
    resources: Resources
    file_mounts: dict[str, str]
    secrets: dict[str, Literal[None]]
    setup: str
    run: str
    service: Service | None = None

    def to_yaml(self) -> str:
        """As a file."""
        content = self.model_dump(exclude_none=True) | {"secrets": self.secrets}
        return yaml.safe_dump(content, sort_keys=False, width=100)


def write_serving(summary: DistillSummary, student: Path, concurrency: int, out: Path) -> list[str]:
    """Write a script for vLLM, and a task and a service for SkyPilot where the server is rented.

    Args:
        summary: of the run. student: its folder. concurrency: answers at once.
        out: the folder of the files; none of them may exist.

    Returns:
        Names of the files.

    Raises:
        FleetError: if one exists already.
        WriteError: if one cannot be written.
    """
    files = serving_files(summary, student.resolve(), concurrency)
    if there := [name for name in files if (out / name).exists()]:
        raise FleetError(f"{out / there[0]} exists already; it was not changed")
    with writing(out):
        make_folder(out)
    for name, content in files.items():
        with replacing(out / name) as file:
            file.write_text(content, encoding="utf-8")
    return list(files)


def serving_files(summary: DistillSummary, student: Path, concurrency: int) -> dict[str, str]:
    """Contents of the files, by their names."""
    chosen = summary.chosen
    about = (
        f"# {summary.name}: {chosen.student} on {chosen.server}, {chosen.usd_per_hour:.4g} USD an "
        f"hour when it was planned.\n"
    )
    here = shlex.join(_command(summary, str(student), concurrency))
    script = (
        f"#!/bin/sh\n{about}# Needs vLLM: pip install vllm. Requests send the key as their token.\n"
        f': "${{{_KEY}:?set it to a secret of your own}}"\nexec {here}\n'
    )
    if chosen.billing == "owned":
        return {SCRIPT: script}
    task = sky_task(summary, student, concurrency)
    probe = Probe(path="/health", initial_delay_seconds=_READY_S)
    service = task.model_copy(update={"service": Service(readiness_probe=probe, replicas=1)})
    own = f"{about}# It costs money until you end it. {_KEY} is a secret of your own.\n"
    return {
        SCRIPT: script,
        TASK: f"{own}# sky launch -c {task.name} --secret {_KEY} {TASK}\n{task.to_yaml()}",
        SERVICE: f"{own}# sky serve up -n {task.name} --secret {_KEY} {SERVICE}\n"
        f"{service.to_yaml()}",
    }


def sky_task(summary: DistillSummary, student: Path, concurrency: int) -> SkyTask:
    """One server that answers until it is ended."""
    chosen = summary.chosen
    return SkyTask(
        name=f"acme-{summary.name}",
        resources=Resources(
            infra=_infra(chosen),
            instance_type=chosen.server,
            accelerators=chosen.accelerators,
            use_spot=chosen.billing == "spot",
            ports=_PORT,
        ),
        file_mounts={_MOUNT: str(student)},
        secrets={_KEY: None},
        setup="pip install vllm",
        run=shlex.join(_command(summary, _MOUNT, concurrency)),
    )


def _infra(chosen: Chosen) -> str:
    """SkyPilot's place: the cloud, its region, or any region that has the zone."""
    place = f"*/{chosen.zone}" if chosen.zone else chosen.region
    return f"{chosen.provider.lower()}/{place}"


def _command(summary: DistillSummary, folder: str, concurrency: int) -> list[str]:
    """vLLM computes with the numbers of the student's file, as its marks are of them."""
    numbers = "float16" if summary.precision == "float16" else "float32"
    return [
        *("vllm", "serve", folder, "--served-model-name", summary.name, "--dtype", numbers),
        *("--max-num-seqs", str(concurrency), "--host", "0.0.0.0", "--port", str(_PORT)),
    ]
