"""The engine `openai_compatible`: models on servers."""
