"""Text from a base model and its adapters: sequences of several requests in batches, by transformers' `generate`."""
