"""A cluster in virtual time that runs the production deciders."""
