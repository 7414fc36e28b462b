"""The terminal view of plans, runs, results and costs."""
