"""Recall of what a sequence told before, asked beside the loss of attention routing."""
