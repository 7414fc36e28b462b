"""A candidate for each cluster: grid, front and choice (Eq. 11-13, Algorithm 1).

A table of objectives has shape ``(candidates, objectives)``. All are minimised; the loss is the
first column and the size the last: loss, energy of the worst device, size (Eq. 10).
"""
