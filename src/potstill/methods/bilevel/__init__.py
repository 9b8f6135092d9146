"""Methods that differentiate what a student learns through the training that taught it."""
