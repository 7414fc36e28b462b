"""Elastic backbones: δ(θ0, w, d) of checkpoints, as sub-networks and as small models."""
