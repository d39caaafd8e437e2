"""Compute: any contiguous span of layers for any batch, in torch or on the paced device."""
