"""Colours of paths in the terminal."""

_CHEAP, _EXPENSIVE = (0x2F, 0x6F, 0xB7), (0xE0, 0x7B, 0x1A)  # GDN blue and softmax orange, as in the report


def route_colour(share: float) -> str:
    """``#rrggbb`` between blue (0: all cheap) and orange (1: all expensive)."""
    mixed = (round(low + (high - low) * share) for low, high in zip(_CHEAP, _EXPENSIVE, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
