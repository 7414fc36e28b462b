"""Questions about a run: its plan before, its choices after, and predictions of its models."""
