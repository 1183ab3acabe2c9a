"""The YAML of a job and of a site, strictly checked."""
