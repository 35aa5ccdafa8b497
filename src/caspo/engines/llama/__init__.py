"""The engine `llama_cpp`: GGUF files in this process."""
