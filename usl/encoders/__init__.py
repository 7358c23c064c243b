"""Encoders by name: a network, its preprocessing, and where its weights came from."""
