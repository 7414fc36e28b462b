"""Memory, time, latency and cost, predicted by formulas that are ours.

Every prediction is an :class:`~acme_fleet.stratos.predictors.estimate.Estimate`: values with a
unit, an error bar and a source. Accuracy is never predicted from a model's size.
"""
