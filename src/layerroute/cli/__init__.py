"""The command line: one module a command, listed in :data:`layerroute.cli.main.COMMANDS`."""
