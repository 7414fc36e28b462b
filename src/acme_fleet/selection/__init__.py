"""A candidate out of a table of objectives: limits, front and choice (Eq. 11-13, Algorithm 1).

A table of objectives has shape ``(candidates, objectives)``, and all are minimised. For a fleet's
clusters the loss is the first column and the size the last: loss, energy of the worst device, size
(Eq. 10). Both systems choose with this code.
"""
