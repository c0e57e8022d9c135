"""Ground floor: what an event range is, what is known of it, and how that lasts on disk."""
