"""The OpenAI HTTP API: parsing, tokenising, streaming, metrics; sees the rest by core.ports."""
