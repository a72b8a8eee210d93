"""Edits: attention calls changed while a model runs. One file per kind of edit."""
