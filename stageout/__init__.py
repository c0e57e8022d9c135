"""Storage: endpoints, stage-out with failover, and merging images into final files."""
