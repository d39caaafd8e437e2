"""Continuous batching and KV blocks: a decider and its thin shell."""
