"""Portable exports of a trained backbone."""
