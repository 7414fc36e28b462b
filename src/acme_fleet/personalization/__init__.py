"""Personalisation rules: the ways in which similar devices learn from each other (Algorithm 2).

A rule is one file with two hooks, ``upload`` on a device and ``mix`` at its edge server, and says
what it discloses. The roles call the hooks and know nothing else of the rule.
"""
