"""From a configuration file and command-line options to `Config`, or to every mistake in them."""
