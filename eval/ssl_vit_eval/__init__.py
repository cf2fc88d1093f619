"""Exports to numbers: k-NN and a linear probe, beside raw pixels and an untrained network."""
