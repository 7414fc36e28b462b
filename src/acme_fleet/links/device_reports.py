"""A device's report, which its edge server and the cloud server check alike."""

from __future__ import annotations

from acme_fleet.config.devices import Device
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.edge_device import DeviceReport
from acme_fleet.tasks.base import Task

_LONGEST_LATENCY_S = 86_400.0
_MOST_SAMPLES, _MOST_RAW_BYTES = 10**9, 2**50  # of one device
_COUNTED = 1e-3  # a share of n samples is a whole number of them, up to rounding


def check_report(task: Task, report: DeviceReport, device: Device, neurons: int) -> None:
    """Refuse what a device of the fleet cannot have ended with.

    Args:
        task: of the fleet.
        report: the device's.
        device: as it stands in the fleet file.
        neurons: of the header that it received.

    Raises:
        ProtocolError: naming the field, its value and the limit.
    """
    what, size = f"the report of {device.name}", report.size_bytes
    if report.name != device.name:
        raise ProtocolError(f"{what} bears the name {report.name}")
    if size > device.storage:
        raise ProtocolError(f"{what}: a model of {size} bytes, it stores {device.storage}")
    if report.params > 2 * size:  # at int4 two are in a byte
        raise ProtocolError(f"{what}: {report.params} parameters in {size} bytes")
    if report.neurons_coarse != neurons or report.neurons > neurons:
        counts = f"{report.neurons} of {report.neurons_coarse}"
        raise ProtocolError(f"{what}: {counts} neurons are left, it received {neurons}")
    for field, most in (
        ("latency_s", _LONGEST_LATENCY_S),
        ("test_samples", _MOST_SAMPLES),
        ("raw_data_bytes", _MOST_RAW_BYTES),
    ):
        if getattr(report, field) > most:
            raise ProtocolError(f"{what}: {field} is {getattr(report, field)}, at most {most}")
    for field in ("accuracy_coarse", "accuracy", "accuracy_linear"):
        correct = getattr(report, field) * report.test_samples
        if task.whole_hits and abs(correct - round(correct)) > _COUNTED:
            share = f"{getattr(report, field)} of {report.test_samples} samples"
            raise ProtocolError(f"{what}: {field} is {share}, which is no whole number of them")
