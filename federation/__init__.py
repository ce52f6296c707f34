"""The Server-Server API."""
