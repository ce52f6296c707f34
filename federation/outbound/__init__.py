"""Server-Server requests that we make."""
