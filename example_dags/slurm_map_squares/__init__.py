"""An example: its DAG, which holds the function itself."""
