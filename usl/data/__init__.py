"""Data sets by name, and the fixed transforms that networks see them through."""
