"""The user, and the commands that they run."""
