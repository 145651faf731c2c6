"""Training of layer skipping: a router, skip paths and a LoRA adapter on a frozen pretrained model.

Importing this package is cheap: torch is only imported by the modules that train.
"""
