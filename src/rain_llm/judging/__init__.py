"""Self-evaluation: build questions about a text, ask a model, and compute a verdict from its scores."""
