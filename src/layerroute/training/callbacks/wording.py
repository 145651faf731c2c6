"""Curve points in words."""

from typing import Any


def describe(logs: dict[str, Any], left: float | None) -> str:
    """One line about a curve point."""
    parts = []
    if logs:
        parts.append(f"loss {logs['loss']:.4f}{rates(logs)}")
        if "tokens_per_second" in logs:
            parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    if left is not None:
        parts.append(f"ETA {duration(left)}")
    return "  ".join(parts)


def rates(logs: dict[str, Any]) -> str:
    """``"  softmax layer1 48% layer2 52%"``-like text: the rate of every site, empty without routing."""
    found = {name.removeprefix("rate/"): value for name, value in logs.items() if name.startswith("rate/")}
    if not found:
        return ""
    if len(found) > 4:
        values = list(found.values())
        return f"  rate {sum(values) / len(values):.0%} ({min(values):.0%}-{max(values):.0%}, {len(values)} sites)"
    return "  rate " + " ".join(f"{site} {value:.0%}" for site, value in found.items())


def duration(seconds: float) -> str:
    """``75`` → ``"1m15s"``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
