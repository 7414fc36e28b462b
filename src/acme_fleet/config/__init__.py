"""Fleet files: every setting of a run, checked before any work."""
