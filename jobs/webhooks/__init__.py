"""Webhooks: what is sent, to whom it may be sent, and what is still due."""
