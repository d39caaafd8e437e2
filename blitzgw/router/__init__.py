"""Which instance serves a request; the token log, and what happens when an instance is lost."""
