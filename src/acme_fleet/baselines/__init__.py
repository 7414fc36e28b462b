"""Rivals of the mixing weights, for experiments alone."""
