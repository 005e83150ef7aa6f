"""The parts of the model. Everything but `backbone` and `heads` runs without detectron2."""
