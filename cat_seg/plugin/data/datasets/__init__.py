"""Which images and label maps make a dataset, and what their labels mean."""
