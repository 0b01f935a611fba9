"""OpenAI's API: its requests, read; its answers, whole and as events."""
