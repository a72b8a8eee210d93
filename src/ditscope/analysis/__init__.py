"""Numbers computed from a recorded run, as plain data: numpy and xarray, never torch."""
