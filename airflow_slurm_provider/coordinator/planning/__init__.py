"""Items to tasks, and failed items to a retry round."""
