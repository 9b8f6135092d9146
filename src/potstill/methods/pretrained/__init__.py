"""Methods that look through a frozen, pre-trained backbone."""
