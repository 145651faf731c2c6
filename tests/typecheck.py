"""The run-time type checker of the test suite."""

from beartype import BeartypeConf, beartype

# An int is a fine float (PEP 484's numeric tower), as every static checker has it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
