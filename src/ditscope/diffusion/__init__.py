"""Noise processes, guidance, samplers and losses. They know a callable, never a model."""
