"""Methods of kernel ridge regression."""
