"""Seeing attention without changing it: the seam, the census, statistics and exact rows."""
