"""Which benchmark records are drawn; apart, so that a command's help needs no plotting library."""

DRAWN = ("prefill", "decode", "train-skipping", "attention", "hybrid")
"""Cases whose records can be drawn as speed-up against the share left out."""
