"""A synthetic world: scenes of nameable things, drawn from a seed."""
