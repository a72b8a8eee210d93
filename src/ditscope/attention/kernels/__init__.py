"""Kernels that reduce attention query by query in one pass, each for one kind of device."""
