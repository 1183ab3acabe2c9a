"""An example: its DAG, which contains the function."""
