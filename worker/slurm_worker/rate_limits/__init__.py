"""Global rate limits: tokens that workers lease ahead from one row of the table."""
