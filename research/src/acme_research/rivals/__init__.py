"""Other ways to models, choices and mixing weights of the same size."""
