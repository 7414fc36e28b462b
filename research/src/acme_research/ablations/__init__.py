"""Scripts that stand alone, ``python -m acme_research.ablations.NAME``, each with its result."""
