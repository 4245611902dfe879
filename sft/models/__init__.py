"""Base models and tokenizers: finding, checking, loading and saving them."""
