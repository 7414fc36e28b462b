"""The checker of types and shapes under pytest; see ``_MATHEMATICS`` in ``conftest.py``."""

from beartype import BeartypeConf, beartype

# As PEP 484 says, a whole number is accepted where a float is asked for.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
