"""Decoupled methods: networks are trained first, images are recovered from them."""
