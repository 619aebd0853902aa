"""Triton kernels, one op a file; imported only where they run."""
