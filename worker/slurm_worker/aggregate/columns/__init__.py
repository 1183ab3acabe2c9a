"""JSON rows as typed columns: the types, inferring them, and converting to Arrow."""
