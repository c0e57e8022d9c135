"""Rank 0 and the command line: configuration, dispatch, the journal of a task, and what people see of it."""
