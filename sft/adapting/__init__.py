"""Adapters: which layers get one, and the adapter that training starts from."""
