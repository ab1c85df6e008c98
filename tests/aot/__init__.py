"""The compile matrix: kernels for GPUs that are not here."""
