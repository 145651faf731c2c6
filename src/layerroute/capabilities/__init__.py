"""The questions that runs answer, a folder each: found by the lab, which knows none by name."""
