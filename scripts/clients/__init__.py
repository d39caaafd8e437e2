"""Clients of the field: how each is installed and driven (scripts/check_clients)."""
