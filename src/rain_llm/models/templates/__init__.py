"""Render chat templates within bounds of time and memory."""
