"""Benchmarks: prove that two ways to compute the same thing are equal, then measure them in turn."""
