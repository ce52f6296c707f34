"""Server-Server requests that we answer: one file per section of the specification."""
