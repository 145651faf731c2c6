"""Training of routed models: a thin subclass of transformers' Trainer, its callbacks and its configuration.

Importing this package is cheap: torch is only imported by the modules that train.
"""
