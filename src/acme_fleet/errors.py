"""The errors that a user can meet.

AcmeError
├── FleetError      a fleet file, a data set or an argument is wrong; nothing has been trained yet
├── RunError        a run directory is missing, incomplete or of another fleet
├── ProtocolError   a message is malformed, or not what was asked for
└── QuorumError     too few devices or edges answered; what was finished is on disk
"""


class AcmeError(Exception):
    """Base of all errors that acme-fleet raises on purpose."""


class FleetError(AcmeError):
    """A fleet file, a data set or an argument is wrong."""


class RunError(AcmeError):
    """A run directory is missing, incomplete or belongs to another fleet."""


class ProtocolError(AcmeError):
    """A message that crossed a tier border is malformed or not what was asked for."""


class QuorumError(AcmeError):
    """Too few peers answered for the run to go on."""
