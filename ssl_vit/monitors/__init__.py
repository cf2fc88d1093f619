"""Monitoring of what a run learns: collapse, spread of the features, online probes."""
