"""Models that a search can use: local, on servers, and scripted."""
