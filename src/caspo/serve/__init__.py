"""CaT behind the OpenAI API: many users, one engine."""
