"""Stratos: a language model for rented servers, under a budget (``acme distill``).

The stages are those of the paper's abstract; every formula here is ours, see ``docs/stratos.md``.
"""
