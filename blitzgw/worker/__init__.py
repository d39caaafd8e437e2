"""The child process that drives one device, and its handle in the parent."""
