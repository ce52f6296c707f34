"""PostgreSQL as our child process: found, prepared, started, watched, started again and stopped.

`supervisor` puts the parts together and is what the rest of the program imports.
"""
