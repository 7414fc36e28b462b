"""From a device's folder to an artifact for its runtime: built, verified, described."""
