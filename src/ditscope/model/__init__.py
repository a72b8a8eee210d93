"""The network and nothing else: configuration, layers, the DiT itself, and its weights on disk."""
