"""Likelihoods, distributions over 8-bit pixels: one file each, found by its name in params.yaml."""
