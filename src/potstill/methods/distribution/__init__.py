"""Methods that match the distribution of every class's features."""
