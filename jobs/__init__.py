"""Manages jobs without HTTP and torch: submit, follow, list, cancel; storage; the local stack."""
