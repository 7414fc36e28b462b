"""Alembic's migrations of the registry; what is in ``versions/`` is never changed."""
