"""The face for operators: `blitzgw run`, `scale`, `inspect`, `top`, `models` and so on."""
