"""Which images and label maps make a data set, and what their labels mean."""
