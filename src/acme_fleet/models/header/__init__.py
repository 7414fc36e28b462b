"""Headers: modules from a plan, pruning, and hand-made rivals."""
