"""The face for operators: `blitzgw run`, `check-config`, `models`."""
