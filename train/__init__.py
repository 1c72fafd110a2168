"""Training: one Accelerate loop for every objective."""
