"""A model that came from the edge server: it is checked before anything is done with it."""

from __future__ import annotations

from acme_fleet.config.devices import Device
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.base import check_shapes
from acme_fleet.messages.edge_device import HeaderAssignment
from acme_fleet.messages.header_plan import HeaderPlan
from acme_fleet.models.header.module import Header, build_header
from acme_fleet.models.storage import sent_size
from acme_fleet.outside import one_line, reason
from acme_fleet.tasks.base import Task


def check_fits(device: Device, assignment: HeaderAssignment) -> None:
    """The last guard: the edge server may not have heard of this device's limits.

    Raises:
        ProtocolError: if the device cannot store the model, or not execute it.
    """
    precision = assignment.config.get("precision")
    if precision not in device.precisions:
        raise ProtocolError(
            f"a model in {one_line(str(precision), 60)} was sent, {device.name} "
            f"executes {', '.join(device.precisions)}"
        )
    size = sent_size(assignment.backbone, assignment.header)
    if size > device.storage:
        raise ProtocolError(
            f"a model of {size} bytes was sent, {device.name} stores {device.storage}"
        )


def coarse_header(task: Task, assignment: HeaderAssignment) -> Header:
    """Check and build the header that was sent.

    Raises:
        ProtocolError: if plan and tensors do not belong together.
    """
    try:
        plan = HeaderPlan.model_validate(assignment.plan)
    except ValueError as error:
        raise ProtocolError(f"the header's plan is invalid: {reason(error)}") from error
    names = assignment.class_names
    outputs = task.header_outputs(names, plan.hidden)
    if len(set(names)) != len(names) or outputs != plan.classes or task.per_token != plan.causal:
        raise ProtocolError(
            f"the header tells {plan.classes} classes apart, and {len(set(names))} different "
            f"names came with it"
        )
    check_shapes(assignment.header, plan.shapes(), "the header")
    linear = {"weight": (plan.classes, plan.pooled_size), "bias": (plan.classes,)}
    check_shapes(assignment.linear, linear, "the linear header")
    return build_header(plan, assignment.header)
