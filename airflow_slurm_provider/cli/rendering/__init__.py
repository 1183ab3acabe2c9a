"""How results look in a terminal, a pipe and JSON."""
