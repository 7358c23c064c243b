"""Density, clusters and picks: tensors in, tensors out."""
