"""Complete runs as functions; the command line calls them."""
