"""CaT behind the OpenAI API."""
