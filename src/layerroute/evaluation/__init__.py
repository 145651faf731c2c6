"""What a trained model is worth: cross-entropy over real tokens, rates of hard decisions, loading of checkpoints."""
