"""Methods that choose real images."""
