"""Run the artifacts that ``acme export`` writes: without torch, for predictions and as a server."""

__version__ = "0.1.0"
