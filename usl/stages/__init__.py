"""The stages: their settings, and what they build from them. Nothing below knows a setting."""
