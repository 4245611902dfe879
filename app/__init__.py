"""The documented Python surface."""
