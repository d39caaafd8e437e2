"""A serving cluster in virtual time: production deciders, simulated machines and networks."""
