"""Tensor operators, each with a plain reference, fast backends of the same signature, and one dispatch."""
