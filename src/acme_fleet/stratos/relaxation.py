"""The smallest change of a request's limits that makes something feasible, in words."""

from __future__ import annotations

import numpy as np

from acme_fleet.errors import FleetError
from acme_fleet.report.words import bytes_text
from acme_fleet.selection.limits import single_relaxations, smallest_relaxation
from acme_fleet.stratos.plan import Plan


def check_feasible(plan: Plan) -> None:
    """Refuse a plan in which nothing is feasible.

    Raises:
        FleetError: with the smallest relaxation of the limits, in numbers.
    """
    if not plan.groups:
        raise FleetError(relaxation_text(plan))


def relaxation_text(plan: Plan) -> str:
    """One or two sentences for a plan in which nothing is feasible."""
    memory, predictions = plan.predictions.memory, plan.predictions
    if not memory.any():
        need = np.maximum(predictions.training_bytes.high, predictions.serving_bytes.high)
        pair, server = np.unravel_index(int(need.argmin()), need.shape)
        most = int(plan.speeds.memory_bytes.argmax())
        return (
            f"no server has the memory for any pair: the smallest, {plan.possible[pair].name}, "
            f"needs {bytes_text(float(need[pair, server]))} on a {plan.offers[server].instance}, "
            f"and the largest, {plan.offers[most].instance}, has "
            f"{bytes_text(float(plan.speeds.memory_bytes[most]))}; limits do not change that: take "
            f"smaller students, a smaller workload.batch_size, or other servers"
        )
    values = plan.values[:, memory]
    found = smallest_relaxation(values, plan.limits)
    pair, server = np.argwhere(memory)[found.candidate]
    units = {limit.name: limit.unit for limit in plan.limits}
    old = {limit.name: limit.bound for limit in plan.limits}

    def moved(name: str, bound: float) -> str:
        shown = f"limits.{name} {_reached(old[name], bound):.6g} {units[name]}".strip()
        return f"{shown} in place of {old[name]:g}"

    told = " and ".join(moved(name, bound) for name, bound in found.bounds.items())
    text = (
        f"no pair on any server keeps all limits. The smallest relaxation that admits one is "
        f"{told}: {plan.possible[pair].name} on {plan.offers[server].instance} in "
        f"{plan.offers[server].region}."
    )
    alone = single_relaxations(values, plan.limits)
    if others := {name: bound for name, bound in alone.items() if found.bounds.keys() != {name}}:
        each = ", or ".join(moved(name, bound) for name, bound in others.items())
        text += f" One limit alone would do as well: {each}."
    return text


def _reached(old: float, bound: float) -> float:
    """The bound with six digits, rounded so that it still admits the candidate."""
    step = 10.0 ** (np.floor(np.log10(abs(bound) or 1.0)) - 5)
    rounded = np.ceil(bound / step) if bound > old else np.floor(bound / step)
    return float(rounded * step)
