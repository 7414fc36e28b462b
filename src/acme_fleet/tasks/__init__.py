"""Tasks: one file for each thing that can be learned, its loss, score, head and metric.

The rest of the project trains and compares by these and knows nothing else of what is learned. A
task computes with tensors alone: no model, no files, no messages.
"""
