"""Exact nearest neighbours; each backend only proposes candidates."""
