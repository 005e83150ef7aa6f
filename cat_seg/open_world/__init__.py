"""A synthetic open world: scenes of nameable things, drawn from a seed."""
