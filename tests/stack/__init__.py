"""The development stack: real Slurm, sshd, S3, DynamoDB and Airflow on this machine's loopback.

``python -m tests.stack up|down|status|with`` drives it. All its state lies in ``.stack/``.
"""
