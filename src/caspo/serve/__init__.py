"""CaT behind the OpenAI API: many users, one engine. `wire` translates, `scheduler` shares, `app` speaks HTTP."""
