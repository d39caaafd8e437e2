"""The face for operators: `blitzgw run`, `inspect`, `check-config`, `models`, `simulate`."""
