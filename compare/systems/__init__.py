"""The systems of a comparison, the requests to them and the collection of their answers."""
