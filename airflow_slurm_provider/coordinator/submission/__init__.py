"""Workers on the cluster: upload, submit, credentials, control."""
