"""Decoder layers in C++ for CPUs that multiply bf16: fused, one call a span of layers."""
