"""Checkpoint formats → blobs: what is on disk becomes what the engine computes with."""
