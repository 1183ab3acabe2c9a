"""What coordinator and workers agree on: keys, rows, conditions, leases, the layout on S3."""
