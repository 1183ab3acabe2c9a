"""A job of up to a billion items in virtual time, over the coordination code itself."""
