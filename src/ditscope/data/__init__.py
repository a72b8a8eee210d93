"""Pictures and latents to learn from: the bundled emoji scenes, folders, autoencoders."""
