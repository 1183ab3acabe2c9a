"""What a node, and the credentials on it, can do."""
