"""Data sets by name, and how their files are read."""
