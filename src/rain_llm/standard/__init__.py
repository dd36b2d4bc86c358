"""Measure guarding on public sets of requests, with judges of harm that are not the model's own."""
