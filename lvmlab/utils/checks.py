"""What the fields of a configuration may be."""


def check_fields(config, **fields: tuple[bool, str]) -> None:
    """Raises ValueError for the first field that is not good, with its value and what would be accepted.
    fields: name=(good, accepted).
    """
    for field, (good, accepted) in fields.items():
        if not good:
            raise ValueError(f"{type(config).__name__}.{field}={getattr(config, field)!r}: give {accepted}")
