"""Measurements of rain-llm: what it does for the text, and what it costs."""
