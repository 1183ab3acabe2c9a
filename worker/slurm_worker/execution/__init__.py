"""Loading and calling the user's handler."""
