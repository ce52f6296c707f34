"""What operations cost, as `make bench` prints it."""
