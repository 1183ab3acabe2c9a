"""What handlers returned: the journal on the node, parts and checkpoints on S3."""
