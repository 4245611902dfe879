"""Makes untrusted text safe to store, log and show."""
