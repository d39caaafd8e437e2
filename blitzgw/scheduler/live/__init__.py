"""Requests whose layers are split between instances: a home, its helpers, and what they keep."""
