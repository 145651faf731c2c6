"""Layer skipping: which layers of a pretrained model each token runs."""
