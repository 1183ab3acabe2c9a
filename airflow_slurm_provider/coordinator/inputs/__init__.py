"""Items from files."""
