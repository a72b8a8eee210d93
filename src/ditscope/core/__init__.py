"""Names of axes, coordinates, manifests and specs. Plain Python and pydantic: no torch, no numpy."""
