"""The face for operators: `blitzgw run`, `scale`, `inspect`, `models`, `simulate` and so on."""
