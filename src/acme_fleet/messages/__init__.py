"""The only types that cross a tier border.

Frozen, no unknown fields, tensors by name. No type has a field for samples or their labels. What
arrives is checked here for type, names, dtypes, lengths and finite values, and by the role that
gets it. ``limits`` of a type bound the bytes of a message before any of them is parsed.
"""
