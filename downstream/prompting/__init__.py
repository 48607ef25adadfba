"""Training of a mask decoder by simulated prompts, and scores of its answers."""
