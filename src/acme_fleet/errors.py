"""The errors that a user can meet.

AcmeError
├── FleetError      a fleet file, a data set or an argument is wrong; nothing has been trained yet
├── ArtifactError   an artifact is missing or damaged, or this machine cannot run it
├── DeliveryError   a release cannot be published, or what is published cannot be trusted or used
├── RunError        a run directory is missing, incomplete or of another fleet
│   ├── DamagedError    a file in it is not what was written
│   └── WriteError      a file in it cannot be written; what was finished is on disk
├── ProtocolError   a message is malformed, or not what was asked for
└── QuorumError     too few devices or edges answered; what was finished is on disk
"""

from acme_fleet_runtime.errors import AcmeError, ArtifactError, DeliveryError, FleetError

__all__ = [
    "AcmeError",
    "ArtifactError",
    "DamagedError",
    "DeliveryError",
    "FleetError",
    "ProtocolError",
    "QuorumError",
    "RunError",
    "WriteError",
]


class RunError(AcmeError):
    """A run directory is missing, incomplete or belongs to another fleet."""


class DamagedError(RunError):
    """A file of a run directory is damaged, or of an older version."""


class WriteError(RunError):
    """A file cannot be written: the disk is full or read-only, or a limit is reached."""


class ProtocolError(AcmeError):
    """A message that crossed a tier border is malformed or not what was asked for."""


class QuorumError(AcmeError):
    """Too few peers answered for the run to go on."""
