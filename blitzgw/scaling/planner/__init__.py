"""Ways for weights to reach their targets: one file per strategy, and what each would take."""
