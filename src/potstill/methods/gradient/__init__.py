"""Methods that match the gradients of networks."""
