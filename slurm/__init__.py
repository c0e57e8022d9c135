"""The batch system: what the allocation is, how to ask for one, and what is wrong with this place."""
