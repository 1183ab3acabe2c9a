"""Whether what is released can be installed and used: archives, clean environments, versions."""
