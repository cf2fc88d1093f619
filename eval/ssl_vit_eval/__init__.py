"""Evaluation of exports: k-NN and a linear probe, against raw pixels and an untrained network."""
