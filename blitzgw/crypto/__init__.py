"""What seals the traffic between nodes: keys, datagrams, handshakes and records of streams."""
