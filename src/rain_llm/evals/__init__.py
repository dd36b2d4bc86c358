"""Evidence: several methods write answers to the same prompts, and independent judges compare them."""
