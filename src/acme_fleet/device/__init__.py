"""A device: its half of Algorithm 2, on private data that stays in its role."""
