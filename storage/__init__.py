"""PostgreSQL: everything this server remembers."""
