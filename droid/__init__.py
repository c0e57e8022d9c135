"""Everything that happens on a node: payloads, inputs, workers, and the Droid that feeds them."""
