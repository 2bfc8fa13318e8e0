"""ENGINE=ray: the rows of a prediction in shards to workers on the nodes of a Ray cluster."""
