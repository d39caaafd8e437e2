"""What only a GPU's engine has: captured decode steps, paged attention, sampling on the device."""
