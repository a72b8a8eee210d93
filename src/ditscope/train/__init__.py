"""Training: a typed configuration in, a folder of resumable checkpoints and a log out."""
