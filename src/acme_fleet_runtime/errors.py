"""The errors that a user of the runner can meet; acme-fleet has more of the same base."""


class AcmeError(Exception):
    """Base of all errors that acme-fleet raises on purpose."""


class FleetError(AcmeError):
    """A fleet file, a data set, an input or an argument is wrong."""


class ArtifactError(AcmeError):
    """An artifact is missing or damaged, or this machine cannot run it."""


class DeliveryError(AcmeError):
    """A release cannot be published, or cannot be trusted or used."""
