"""Webhooks: payloads, signatures, allowed targets, the outbox, and fair sharing of senders."""
