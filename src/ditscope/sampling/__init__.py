"""Where pipeline, sampler, watch and run writer meet: draw, record, and replay a step of a run."""
