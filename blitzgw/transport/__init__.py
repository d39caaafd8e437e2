"""Bytes between workers: memory, tcp, nccl behind one interface."""
