"""The training loop, its evaluation, and stages that survive a stop."""
