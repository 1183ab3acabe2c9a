"""What must hold at the end of a simulated backfill, recomputed from objects and rows alone."""
