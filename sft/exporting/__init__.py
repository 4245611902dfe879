"""Brings adapters into the form of other programs: Ollama's templates, GGUF files, vLLM's command."""
