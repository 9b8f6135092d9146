"""Methods that match training trajectories."""
