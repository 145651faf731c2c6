"""Synthetic recall: sequences whose answers stand earlier in the same sequence. No torch here."""
