"""Loss on tokens that are copied from far back, asked beside the loss of attention routing."""
