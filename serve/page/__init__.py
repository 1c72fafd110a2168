"""The chat page, a file a part of it."""
