"""The functions behind ``layerroute.load``, ``calibrate`` and all of the top level; commands call the same ones."""
