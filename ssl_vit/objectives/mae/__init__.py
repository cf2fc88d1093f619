"""Masked autoencoder (He et al. 2021)."""
