"""The edges behind `protocol.ports`: DynamoDB, S3, a local folder, the clock."""
