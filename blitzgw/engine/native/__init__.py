"""The decoder layer in C++ for CPUs with AMX: bf16, fused, one call a layer."""
