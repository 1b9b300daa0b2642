"""Samples and figures from both stages."""
