"""Would more labels help? `make curve`: the metric on validation rows over nested subsets of the train rows."""
