"""Preregistration, routing policy and verdict."""
