"""A linter for what people read: documents, comments, docstrings and messages (`make prose`)."""
