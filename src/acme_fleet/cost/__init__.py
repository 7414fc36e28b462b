"""Costs of a model: bytes, joules and watts."""
