"""Names of axes, coordinates, manifests and specs: plain Python and pydantic."""
