"""LoRA adapters: which layers get one, and which adapter training starts from."""
