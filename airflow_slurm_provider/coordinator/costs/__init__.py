"""What a job costs, and what it will."""
