"""Judging: the questions put to a model, and what its answers come to."""
