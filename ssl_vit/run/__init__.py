"""A run from its command line to its folder: config, data, start, machine, messages."""
