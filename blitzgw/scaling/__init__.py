"""Which instances a model has: plans, operations, host copies. Deciders, without I/O."""
