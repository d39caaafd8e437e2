"""The vocabulary: what siblings share. Imports nothing but the standard library."""
