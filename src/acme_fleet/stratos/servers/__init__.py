"""Servers for rent or owned, from files: what each offers, and its price with date and currency."""
