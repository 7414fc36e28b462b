"""The task that a fleet file asks for."""

from __future__ import annotations

from acme_fleet.config.base import chosen
from acme_fleet.tasks.base import Task
from acme_fleet.tasks.classification import CLASSIFICATION
from acme_fleet.tasks.generation import GENERATION

TASKS: dict[str, Task] = {"classification": CLASSIFICATION, "generation": GENERATION}
"""By ``task``. A new task is a file and an entry here."""


def task_of(name: str) -> Task:
    """The task of this name.

    Raises:
        FleetError: if there is none, naming those there are.
    """
    return chosen(TASKS, name, "task")
