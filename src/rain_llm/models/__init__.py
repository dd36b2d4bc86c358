"""Models that a search may use: local, and scripted."""
