"""Time, chance and what is known of a run."""
