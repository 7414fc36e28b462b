"""The replies that an edge server accepts of its devices; everything else loses the device."""

from __future__ import annotations

import math

import torch

from acme_fleet.config.devices import Device
from acme_fleet.config.personalization import Personalization, Privacy
from acme_fleet.errors import ProtocolError
from acme_fleet.messages.edge_device import (
    DeviceProfile,
    FeatureSample,
    RoundReport,
    check_features,
)
from acme_fleet.messages.header_plan import HeaderPlan

_LONGER = 10.0
"""Times the edge's own longest feature; features of one backbone have nearly one length."""
_PRIME = 2**255 - 19
# Public keys (Curve25519) from which no secret in common can be made: RFC 7748, section 6.1.
_WEAK_KEYS = {
    *(0, 1, _PRIME - 1),
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}


def check_profile(device: Device, profile: DeviceProfile) -> None:
    """A device claims what the fleet file says of it, and nothing else.

    Raises:
        ProtocolError: naming both.
    """
    told, known = profile.energy.model_dump(), device.energy.model_dump()
    if profile.name != device.name:
        raise ProtocolError(f"the profile of {device.name} bears the name {profile.name}")
    if profile.storage_bytes != device.storage:
        raise ProtocolError(
            f"{device.name} claims to store {profile.storage_bytes} bytes, the fleet file says "
            f"{device.storage}"
        )
    if profile.precisions != device.precisions:
        claimed, listed = (", ".join(one.precisions) for one in (profile, device))
        raise ProtocolError(
            f"{device.name} claims to execute {claimed}, the fleet file says {listed}"
        )
    for constant in known:
        if told[constant] != known[constant]:
            raise ProtocolError(
                f"{device.name} claims {constant} = {told[constant]}, the fleet file says "
                f"{known[constant]}"
            )


def check_sample(
    name: str, sample: FeatureSample, settings: Personalization, hidden: int, longest: float
) -> None:
    """Refuse a feature sample that was not asked for like this, or that no sample can give.

    Args:
        name: the device's.
        sample: its reply.
        settings: of all devices.
        hidden: numbers of a feature.
        longest: L2 norm of the longest feature of the edge server's own data on this backbone.

    Raises:
        ProtocolError: naming the number and what it may be.
    """
    privacy, what = settings.privacy, f"the feature sample of {name}"
    width = privacy.sketch_dim or hidden
    check_features(sample.features, settings.rows_sent, width, what)
    dtype = torch.float16 if privacy.sketch_bits == 16 else torch.int8
    if sample.features.dtype != dtype or (dtype == torch.float16 and sample.scale != 1):
        given = f"{sample.features.dtype} with a scale of {sample.scale:g}"
        raise ProtocolError(f"{what} is {given}, expected {dtype}")
    check_key(name, sample.public_key, privacy.masking)
    if not len(sample.features):
        return
    most, found = longest_row(longest, width, privacy, hidden), sample.rows().norm(dim=1).max()
    if not float(found) <= most:
        raise ProtocolError(
            f"{what} has a row of length {float(found):.3g}, at most {most:.3g} is plausible: "
            f"features of the edge server's own data are up to {longest:.3g} long"
        )


def longest_row(longest: float, width: int, privacy: Privacy, hidden: int) -> float:
    """The longest row that is plausible, where the edge's own features are up to ``longest``.

    A sketch keeps lengths on average. Noise has a standard deviation of its multiplier times
    twice the clipping norm in each of the ``width`` numbers; a length eight deviations above its
    root mean square does not occur.
    """
    clip = privacy.feature_clip * math.sqrt(hidden)
    deviation = (privacy.feature_noise or 0.0) * 2 * clip
    return _LONGER * longest + deviation * (math.sqrt(width) + 8)


def check_key(name: str, key: str, masking: bool) -> None:
    """Refuse a public key that is missing, was not asked for, or gives no secret in common.

    Raises:
        ProtocolError: naming the device.
    """
    if bool(key) != masking:
        wanted = "a public key" if masking else "no public key"
        raise ProtocolError(f"the feature sample of {name} must have {wanted}")
    number = int.from_bytes(bytes.fromhex(key), "little") % 2**255
    if masking and number % _PRIME in _WEAK_KEYS:
        raise ProtocolError(f"the public key of {name} gives no secret in common with anybody")


def check_pruned(name: str, report: RoundReport, number: int, plan: HeaderPlan) -> None:
    """Refuse a report of another round, or of neurons that there were not.

    Raises:
        ProtocolError: naming both numbers.
    """
    check_round(name, report.round, number)
    if report.neurons > plan.neurons:
        raise ProtocolError(f"{name} has {report.neurons} neurons left, it received {plan.neurons}")


def check_round(name: str, told: int, number: int) -> None:
    """Refuse an answer for another round.

    Raises:
        ProtocolError: naming both.
    """
    if told != number:
        raise ProtocolError(f"{name} answered for round {told}, this is round {number}")
