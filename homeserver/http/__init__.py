"""HTTP as both APIs need it: typed endpoints, errors, limits."""
