"""An example: its DAG, its configuration and its handler."""
