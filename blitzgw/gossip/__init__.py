"""Who is there, what they publish, and the links between nodes: deciders and their shells."""
