"""Trains an adapter from prepared rows and saves it."""
